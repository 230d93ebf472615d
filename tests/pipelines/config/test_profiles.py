"""A profile says what differs from profiles/base.yaml; both together are the params.yaml of a published setting."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from pipelines.cli.__main__ import main
from pipelines.config.loading import check_params
from pipelines.config.params import grid_side
from pipelines.config.profiles import compose, differences, profile_names, read_profile
from pipelines.config.variant import all_variants, find_variant
from tests.reference import REFERENCE, needs_reference
from vapi_core.errors import FileError, ParameterError
from vapi_core.models.llamagen.generator import Generator
from vapi_core.models.llamagen.tokenizer import Tokenizer

SIZES = {"llamagen-xl-c2i": ("GPT-XL", 2.0), "llamagen-xxl-c2i": ("GPT-XXL", 1.75)}
T2I = ("llamagen-xl-t2i", "janus-pro-1b")


def profile(name):
    return check_params(read_profile(name))


# Putting a profile over the base


@pytest.fixture
def folder(tmp_path):
    """A place with a base of a few sections; returns what writes a profile there and composes it."""
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/base.yaml").write_text(
        "# Only those who read the base see this.\n\n"
        "profile: base # its name\n\n"
        "subset: # which images\n"
        "  seed: 0 # of the choice\n"
        "  splits: # images of each\n"
        "    train: 10 # many\n"
        "    scorer: 5\n\n"
        "variants:\n"
        "  # the paper's\n"
        "  va-pi: {method: va-pi} # ours\n"
        "  ste:\n"
        "    method: ste\n"
        "    align:\n"
        "      tau: 1.0 # of the softmax\n"
    )

    def composed(profile: str) -> str:
        (tmp_path / "profiles/mine.yaml").write_text(profile)
        text = compose("mine", tmp_path)
        assert yaml.safe_load(text) == read_profile("mine", tmp_path)
        return text

    return composed


def test_comments_of_both_stay_those_of_the_profile_first(folder):
    text = folder("profile: mine\nsubset:\n  seed: 3 # chosen\n")
    assert text.startswith("# Made of profiles/base.yaml and profiles/mine.yaml")
    assert "profile: mine # its name" in text and "seed: 3 # chosen" in text
    assert "# which images" in text and "# of the choice" not in text and "Only those" not in text
    assert "  # the paper's\n" in text and "tau: 1.0 # of the softmax" in text


def test_splits_take_the_place_of_the_bases_and_other_mappings_are_merged(folder):
    content = yaml.safe_load(
        folder("subset:\n  splits: {heldout: 1, train: 2}\nvariants:\n  ste: {align: {tau: 2.0}}\n")
    )
    assert list(content["subset"]["splits"].items()) == [("heldout", 1), ("train", 2)]
    assert content["variants"]["ste"] == {"method": "ste", "align": {"tau": 2.0}} and content["subset"]["seed"] == 0


def test_null_leaves_a_variant_out_and_a_new_one_is_added(folder):
    content = yaml.safe_load(folder("variants:\n  ste: null\n  mine: {method: va-pi, align: {noise_ratio: 0.3}}\n"))
    assert list(content["variants"]) == ["va-pi", "mine"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subset:\n  sede: 3\n", r"subset\.sede: there is no such parameter in profiles/base\.yaml"),
        ("sample: {count: 3}\n", "sample: there is no such parameter"),
        ("variants:\n  stee: null\n", r"variants\.stee: the base has no such entry"),
    ],
)
def test_what_the_base_does_not_have_is_refused(folder, text, message):
    with pytest.raises(ParameterError, match=message):
        folder(text)


def test_a_profile_that_is_no_yaml_is_named(folder):
    with pytest.raises(FileError, match=r"mine\.yaml: not valid YAML"):
        folder("profile: [")


def test_the_names_of_what_two_profiles_do_not_share_are_dotted():
    old, new = {"a": 1, "b": {"c": 1, "d": 2}}, {"a": 1, "b": {"c": 3, "d": 2}, "e": None}
    assert list(differences(old, new)) == ["b.c"]
    assert list(differences(old, {**new, "e": 5})) == ["b.c", "e"]


# The profiles that are there


def test_params_yaml_is_the_default_profile():
    assert Path("params.yaml").read_text(encoding="utf-8") == compose("mnist")


@pytest.mark.parametrize("name", profile_names())
def test_a_composed_profile_is_the_same_with_and_without_its_comments(name):
    text = compose(name)
    assert yaml.safe_load(text) == read_profile(name)
    assert max(map(len, text.splitlines())) <= 130 and text.count("#") > 90


@pytest.mark.parametrize("name", profile_names())
def test_no_two_variants_of_a_profile_have_the_same_settings(name):
    settings = [json.dumps(v.alignment.settings, sort_keys=True) for v in all_variants(profile(name)) if v.alignment]
    assert len(set(settings)) == len(settings) > 10


def test_the_command_writes_the_profile_that_runs_or_lists_all(tmp_path, monkeypatch, capsys):
    shutil.copytree("profiles", tmp_path / "profiles")
    monkeypatch.chdir(tmp_path)
    assert main(["profile"]) == 0
    assert capsys.readouterr().out.split() == profile_names() and "scenes" in profile_names()
    assert main(["profile", "scenes"]) == 0
    assert Path("params.yaml").read_text(encoding="utf-8") == compose("scenes")
    assert main(["profile", "imagenet"]) == 1
    assert "there is no profile 'imagenet'; there are janus-pro-1b, " in capsys.readouterr().err
    assert Path("params.yaml").read_text(encoding="utf-8") == compose("scenes")


# Class to image: LlamaGen's official models with the paper's hyper-parameters


def shapes(name):
    layout = json.loads((REFERENCE / f"checkpoint_layouts/{name}.json").read_text())["state_dict"]
    return {tensor: entry["shape"] for tensor, entry in layout.items()}


@needs_reference
@pytest.mark.parametrize("name", SIZES)
def test_the_models_of_a_profile_have_every_tensor_of_the_official_checkpoints(name):
    params = profile(name)
    with torch.device("meta"):
        generator = Generator(params.generator.config(grid_side(params), params.tokenizer.codebook_size, classes=1000))
        tokenizer = Tokenizer(params.tokenizer.config())
    for model, layout in ((generator, f"{SIZES[name][0]}_c2i_block576"), (tokenizer, "VQ-16")):
        assert {tensor: list(value.shape) for tensor, value in model.state_dict().items()} == shapes(layout)


@pytest.mark.parametrize("name", SIZES)
def test_the_hyper_parameters_are_those_of_table_7(name):
    params = profile(name)
    alignment = find_variant(params, "va-pi").alignment
    o, a = alignment.optimization, alignment.config
    assert (o.learning_rate, o.weight_decay, o.betas, o.gradient_norm) == (1e-6, 1e-4, (0.9, 0.999), 1.0)
    assert (o.steps, o.batch_size, params.subset.splits["train"]) == (100, 128, 12_800)
    assert (a.group_size, a.noise_ratio, a.regularizer, a.regularizer_weight) == (8, 0.0, "ce", 0.1)
    assert (a.clip_epsilon, a.advantage_clamp, a.reward_network) == (0.2, 5.0, "lpips")
    assert vars(a.reward) == {"mse": 1.0, "perceptual": 1.0, "l1": 0.0, "embedding": 0.0}
    assert params.launch.dtype == "bfloat16" and grid_side(params) == 24


@pytest.mark.parametrize("name", SIZES)
def test_the_protocol_is_that_of_table_2(name):
    params = profile(name)
    s = params.sample
    assert (s.count, s.save_size, s.classes, s.temperature, s.top_k, s.top_p) == (50_000, 256, "random", 1.0, 0, 1.0)
    assert s.guidance_scales == (1.0, SIZES[name][1])
    assert params.score.references == ("VIRTUAL_imagenet256_labeled",) and params.score.is_splits == 10
    assert params.score.extractors == ("inception-v3-compat",)


@pytest.mark.parametrize(
    ("name", "rivals"),
    [
        ("mnist", ["ste", "tokenizer-post-training", "ar-grpo", "cross-entropy-clean"]),
        ("scenes", ["ste", "tokenizer-post-training"]),
        ("llamagen-xl-c2i", ["ar-grpo"]),
        ("llamagen-xxl-c2i", ["ste", "tokenizer-post-training", "tokenizer-post-training-10k"]),
        ("llamagen-xl-t2i", ["ar-grpo"]),
        ("janus-pro-1b", []),
    ],
)
def test_the_rivals_are_those_of_the_papers_tables(name, rivals):
    assert [v.name for v in all_variants(profile(name)) if v.table == "rivals" and v.alignment] == rivals


@pytest.mark.parametrize("name", ["llamagen-xl-c2i", "llamagen-xxl-c2i", "llamagen-xl-t2i"])
def test_at_full_size_a_rival_inherits_neither_steps_nor_rate_and_says_whose_they_are(name):
    own = Path(f"profiles/{name}.yaml").read_text(encoding="utf-8").partition("\nsample:")[0].splitlines()
    for variant in all_variants(profile(name)):
        if variant.table == "rivals" and variant.alignment:
            assert {"learning_rate", "steps"} <= profile(name).variants[variant.name].align.keys()
    stated = [
        line for line in own if line.strip().startswith(("learning_rate: ", "steps: ")) and line.startswith("      ")
    ]
    assert stated and all("# " in line and ("[" in line or "as above" in line) for line in stated), stated


def test_both_rows_of_the_post_trained_tokenizer_are_there():
    """Paper, table 2: 100 steps and 10,000."""
    rows = [
        find_variant(profile("llamagen-xxl-c2i"), f"tokenizer-post-training{end}").alignment for end in ("", "-10k")
    ]
    assert [row.optimization.steps for row in rows] == [100, 10_000]


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_has_the_rows_of_the_papers_ablations(name):
    """Five noise ratios, two regularizers with three weights, four parts of the objective; va-pi itself is one each."""
    tables = [v.table for v in all_variants(profile(name))]
    assert {t: tables.count(t) for t in ("noise", "regularizer", "reward")} == {
        "noise": 4,
        "regularizer": 5,
        "reward": 4,
    }


# Text to image


def alignment(name: str):
    a = find_variant(profile(name), "va-pi").alignment
    o = a.optimization
    return (o.learning_rate, o.weight_decay, o.steps, o.batch_size, a.config.noise_ratio)


def test_llamagen_xl_t2i_has_the_papers_hyper_parameters():
    params = profile("llamagen-xl-t2i")
    assert alignment("llamagen-xl-t2i") == (1e-6, 1e-4, 200, 128, 0.5)
    assert (params.subset.image_size, params.captions.encoder, params.captions.tokens) == (256, "flan-t5-xl", 120)
    assert (params.sample.count, params.sample.top_k, params.sample.guidance_scales) == (4, 2000, (7.5, 1.0))
    assert (params.generator.dim, params.generator.layers, params.generator.heads) == (1280, 36, 20)
    rewards = find_variant(params, "ar-grpo").alignment.config.rewards
    assert rewards.clip_score and rewards.hpsv2 and not rewards.class_likelihood


def test_janus_pro_1b_has_the_papers_hyper_parameters():
    params = profile("janus-pro-1b")
    assert alignment("janus-pro-1b") == (1e-7, 1e-4, 100, 128, 0.95)
    assert (params.subset.image_size, params.captions.encoder) == (384, "janus")
    assert (params.sample.count, params.sample.top_k, params.sample.guidance_scales) == (4, 0, (5.0, 1.0))


@pytest.mark.parametrize("name", T2I)
def test_what_both_have_in_common(name):
    params = profile(name)
    alignment = find_variant(params, "va-pi").alignment
    o, a = alignment.optimization, alignment.config
    assert (params.profile, params.task, params.launch.dtype) == (name, "t2i", "bfloat16")
    assert (o.betas, o.gradient_norm, o.schedule, o.warmup_steps) == ((0.9, 0.999), 1.0, "constant", 0)
    assert (a.group_size, a.regularizer, a.regularizer_weight) == (8, "ce", 0.1)
    assert (a.clip_epsilon, a.advantage_clamp, a.reward.mse, a.reward.perceptual) == (0.2, 5.0, 1.0, 1.0)
    assert params.subset.splits["train"] == o.steps * o.batch_size
    assert params.score.geneval.detector == "mask2former" and params.tokenizer.codebook_size == 16384
