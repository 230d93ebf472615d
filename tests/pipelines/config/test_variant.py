"""A variant is a method with changed settings: what it comes to, where it stands, which images are drawn of it."""

from pathlib import Path

import networkx
import pytest

from pipelines.config.loading import check_params
from pipelines.config.profiles import read_profile
from pipelines.config.variant import all_variants, find_variant, variants_of
from pipelines.reporting.tables import TABLES
from vapi_core.errors import ParameterError


@pytest.fixture
def content():
    return read_profile("mnist")


@pytest.fixture
def params(content):
    return check_params(content)


# Settings


def test_a_variant_changes_what_it_names_and_nothing_else(content):
    content["variants"]["mine"] = {"table": "noise", "method": "va-pi", "align": {"noise_ratio": 0.3}}
    params = check_params(content)
    mine, subject = (find_variant(params, name).alignment.settings for name in ("mine", "va-pi"))
    assert mine["noise_ratio"] == 0.3 and mine == subject | {"noise_ratio": 0.3}


def test_a_term_of_the_reward_is_changed_and_the_others_stay(content, params):
    alone = find_variant(params, "only-mse").alignment.config
    assert alone.regularizer == "none" and alone.reward.terms == ["mse"]
    content["align"]["reward"]["mse"] = 2.0
    assert find_variant(check_params(content), "only-mse").alignment.config.reward.mse == 2.0


def test_a_method_has_its_own_learning_rate_or_the_common_one_and_the_common_budget(content):
    content["variants"]["ste"]["align"]["learning_rate"] = 0.5
    del content["variants"]["ar-grpo"]["align"]["learning_rate"]
    content["align"]["budget"] = 30.0
    params = check_params(content)
    rate = {v.name: v.alignment.optimization.learning_rate for v in all_variants(params) if v.alignment}
    assert rate["ste"] == 0.5 and rate["ar-grpo"] == rate["va-pi"] == content["align"]["learning_rate"]
    assert {v.alignment.optimization.seconds for v in all_variants(params) if v.alignment} == {30.0}


def test_the_settings_of_another_variant_do_not_change_what_a_variant_is(content, params):
    content["variants"]["ste"]["align"]["tau"] = 0.5
    changed = check_params(content)
    names = [v.name for v in all_variants(params) if v.alignment]
    other = [n for n in names if find_variant(params, n).alignment != find_variant(changed, n).alignment]
    assert other == ["ste"]


def test_what_all_share_changes_every_variant_that_does_not_say_otherwise(content, params):
    content["align"]["noise_ratio"] = 0.1
    changed = check_params(content)
    names = [v.name for v in all_variants(params) if v.alignment]
    same = {n for n in names if find_variant(params, n).alignment == find_variant(changed, n).alignment}
    others = {"cross-entropy-clean", "ste", "tokenizer-post-training", "ar-grpo"}  # have no noise, or none of ours
    assert (
        {f"noise-{ratio}" for ratio in ("0_0", "0_25", "0_75", "0_95")}
        <= same
        <= others | {n for n in names if n.startswith("noise")}
    )


def test_a_variant_may_be_trained_by_another_number_of_threads(params):
    assert find_variant(params, "va-pi").alignment.threads is None
    assert find_variant(params, "va-pi-again").alignment.threads == 1


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            "variants.va-pi.method",
            "reinforce",
            r"variants\.va-pi\.method: there is no method 'reinforce'; there are va-pi, ",
        ),
        ("variants.noise-0_0.align.noise_ratio", 2.0, r"variants\.noise-0_0\.align\.noise_ratio: must be at most 1"),
        (
            "variants.only-mse.align.reward.perceptual",
            -1.0,
            r"variants\.only-mse\.align\.reward\.perceptual: must be at",
        ),
        ("variants.only-mse.align.reward.beauty", 1.0, r"variants\.only-mse\.align\.reward\.beauty: there is no such"),
        ("variants.only-mse.align.reward", 1.0, r"variants\.only-mse\.align\.reward: "),
        ("variants.ste.align.noise", 0.5, r"variants\.ste\.align\.noise: the method ste has no such parameter"),
        ("variants.va-pi.align.tau", 0.5, r"variants\.va-pi\.align\.tau: the method va-pi has no such parameter"),
        ("variants.va-pi.align.seeds", [1], r"variants\.va-pi\.align\.seeds: the method va-pi has no such parameter"),
        ("variants.va-pi.align.keep_every", -5, r"variants\.va-pi\.align\.keep_every: must be at least 0"),
        ("variants.va-pi.align.threads", 0, r"variants\.va-pi\.align\.threads: must be at least 1"),
        ("variants.ar-grpo.align.rewards.vlm", 1.0, r"variants\.ar-grpo\.align\.rewards\.vlm: there is no such"),
        ("align.noise_ratio", 2.0, r"^align\.noise_ratio: must be at most 1"),
        ("align.noise_ration", 0.5, r"^align\.noise_ration: there is no such parameter"),
    ],
)
def test_a_wrong_setting_is_named_by_the_key_under_which_it_stands(content, key, value, told):
    *sections, last = key.split(".")
    place = content
    for section in sections:
        place = place[section]
    place[last] = value
    with pytest.raises(ParameterError, match=told):
        check_params(content)


def test_all_wrong_settings_are_told_at_once(content):
    content["variants"]["noise-0_0"]["align"] = {"noise_ratio": 2.0, "group_size": 1, "steps": 0}
    content["variants"]["ste"]["method"] = "sta"
    content["align"]["clip_epsilon"] = -1.0
    with pytest.raises(ParameterError) as caught:
        check_params(content)
    keys = [line.partition(": ")[0] for line in str(caught.value).splitlines()]
    own = {f"variants.noise-0_0.align.{key}" for key in ("noise_ratio", "group_size", "steps")}
    assert set(keys) == own | {"variants.ste.method", "align.clip_epsilon"} and len(keys) == len(set(keys))


def test_a_name_that_is_nobodys_is_told_with_all_that_are(params):
    with pytest.raises(
        ParameterError, match=r"there is no variant 'vapi'; there are base, temperatures, guided, va-pi, "
    ):
        find_variant(params, "vapi")


# Image sets


def test_the_base_is_drawn_with_every_guidance_scale_and_at_other_temperatures_without(params):
    base = find_variant(params, "base")
    drawn = {(s.config.temperature, s.config.guidance_scale) for s in base.sets}
    scales, (main, *others) = params.sample.guidance_scales, params.controls["base"].temperatures
    assert main == params.sample.temperature
    assert drawn == {(main, scale) for scale in scales} | {(t, 1.0) for t in others}
    assert {s.seed for s in base.sets} == set(params.align.seeds)
    assert {s.generator for s in base.sets} == {Path("data/generator")}
    assert {s.config.temperature for s in find_variant(params, "temperatures").sets} == {0.9, 0.6}


def test_an_aligned_generator_is_drawn_with_the_seed_it_was_aligned_with(params):
    for image_set in find_variant(params, "va-pi").sets:
        generator = Path(f"data/aligned/va-pi/{image_set.seed}")
        assert image_set.generator == (generator if image_set.steps is None else generator / f"steps/{image_set.steps}")
        assert image_set.tokenizer == Path("data/tokenizer")


def test_images_of_a_post_trained_tokenizer_come_from_the_base_generator_and_that_tokenizer(params):
    for image_set in find_variant(params, "tokenizer-post-training").sets:
        assert image_set.generator == Path("data/generator")
        assert image_set.tokenizer.parts[:4] == ("data", "aligned", "tokenizer-post-training", str(image_set.seed))


def test_a_variant_has_guidance_scales_of_its_own_or_those_of_all(params):
    assert {s.config.guidance_scale for s in find_variant(params, "noise-0_0").sets} == {1.0}
    assert {s.config.guidance_scale for s in find_variant(params, "va-pi").sets} == set(params.sample.guidance_scales)


def test_every_set_has_a_folder_of_its_own_below_its_table_and_its_variant(params):
    sets = [(v, s.directory) for v in all_variants(params) for s in v.sets]
    assert len({directory for _, directory in sets}) == len(sets)
    for variant, directory in sets:
        assert directory.parent == Path("data/samples") / variant.table / variant.name
    first = params.align.seeds[0]
    assert str(find_variant(params, "va-pi").sets[0].directory) == f"data/samples/experiment/va-pi/t1.0-g1.0-{first}"


def test_weights_are_kept_at_even_steps_before_the_last_and_under_a_budget_of_seconds_never(content):
    def kept(**changes):
        content["variants"]["va-pi"]["align"] = changes
        return find_variant(check_params(content), "va-pi").alignment.kept_steps

    assert kept(steps=60, keep_every=20) == [20, 40]
    assert kept(keep_every=0) == [] and kept(budget=30.0) == []


def test_pictures_of_a_training_that_ends_before_the_first_are_none(content):
    content["align"] |= {"steps": 2, "images_every": 2}
    assert find_variant(check_params(content), "va-pi").alignment.images_every == 2
    content["align"]["images_every"] = 3
    assert find_variant(check_params(content), "va-pi").alignment.images_every == 0
    content["align"]["budget"] = 60.0  # seconds: nobody knows how many steps
    assert find_variant(check_params(content), "va-pi").alignment.images_every == 3


def test_a_variant_may_keep_weights_at_other_steps(content):
    content["variants"]["va-pi"]["align"] = {"keep_every": 10, "steps": 30}
    content["align"]["keep_every"] = 20
    params = check_params(content)
    assert find_variant(params, "va-pi").alignment.kept_steps == [10, 20]
    assert find_variant(params, "ste").alignment.kept_steps == [20, 40]


def test_kept_weights_draw_one_set_each_with_the_first_seed_and_without_guidance(content):
    content["sample"]["guidance_scales"] = [1.5, 1.0]
    del content["controls"]["guided"]
    content["tables"].remove("replication")
    params = check_params(content)
    variant = find_variant(params, "va-pi")
    on_the_way = [s for s in variant.sets if s.steps is not None]
    assert [s.steps for s in on_the_way] == variant.alignment.kept_steps == [20, 40]
    assert {(s.seed, s.config.guidance_scale) for s in on_the_way} == {(params.align.seeds[0], 1.0)}
    assert {s.directory.name for s in on_the_way} == {f"after-{n}-t1.0-g1.0-{params.align.seeds[0]}" for n in (20, 40)}
    assert [s for s in find_variant(params, "base").sets if s.steps is not None] == []


def test_a_kept_tokenizer_is_in_the_folder_of_its_steps(content):
    content["align"]["keep_every"] = 20
    kept = find_variant(check_params(content), "tokenizer-post-training").sets[-1]
    assert kept.tokenizer.parts[-2:] == ("steps", str(kept.steps)) and kept.generator == Path("data/generator")


# The graph of dvc.yaml


@pytest.fixture(scope="module")
def graph():
    """From a stage to what it builds on, of the repository's dvc.yaml under its params.yaml."""
    from dvc.repo import Repo

    repo = Repo(str(Path.cwd()))
    return networkx.relabel_nodes(repo.index.graph, {stage: stage.addressing for stage in repo.index.stages})


def test_every_variant_is_aligned_drawn_and_scored_by_stages_of_its_own_name(params, graph):
    for variant in all_variants(params):
        kinds = ("sample", "score") if variant.alignment is None else ("align", "sample", "score")
        assert {variant.stage(kind) for kind in kinds} <= set(graph)
        behind = networkx.descendants(graph, variant.stage("score"))
        assert variant.stage("sample") in behind and {"references", "generator"} <= behind
        if variant.alignment is not None:
            assert variant.stage("align") in behind


def test_a_table_waits_for_all_its_rows_and_the_experiment_and_for_no_other_tables_rows(params, graph):
    for name, table in TABLES.items():
        stage = "report" if name == "report" else f"table@{name}"
        scored = {s for s in networkx.descendants(graph, stage) if s.startswith("score")}
        assert scored == {variant.stage("score") for variant in variants_of(params, *table.rows)}
    aligned = {s for s in networkx.descendants(graph, "report") if s.startswith("align@")}
    assert aligned == {"align@va-pi", "align@cross-entropy"}


def test_the_rivals_are_all_methods_of_the_paper(params):
    methods = {v.alignment.name for v in variants_of(params, "experiment", "rivals") if v.alignment}
    assert methods == {"va-pi", "cross-entropy", "ste", "tokenizer-post-training", "ar-grpo"}
