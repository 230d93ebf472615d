"""params.yaml is refused, before any work, with the name of the key that is wrong."""

from pathlib import Path

import pytest
import yaml
from pipelines.config.params import check_params, load_params

from vapi_core.errors import FileError, ParameterError

PROFILES = sorted(Path("profiles").glob("*.yaml"))


@pytest.fixture
def content():
    return yaml.safe_load(Path("profiles/mnist.yaml").read_text(encoding="utf-8"))


def put(content, key, value):
    """Sets a dotted key."""
    *sections, last = key.split(".")
    for section in sections:
        content = content[section]
    content[last] = value


@pytest.mark.parametrize("path", [Path("params.yaml"), *PROFILES], ids=str)
def test_every_params_file_of_the_repository_is_valid(path):
    assert load_params(path).profile


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("align.noise_ratio", 1.5, "less than or equal to 1"),
        ("align.noise_ratio", "a tenth", "valid number"),
        ("align.group_size", 1, "greater than or equal to 2"),
        ("align.group_size", 8.5, "integer"),
        ("align.micro_batch_size", 5, "does not divide"),
        ("launch.processes", 3, "does not divide into 3 equal parts"),
        ("launch.strategy", "zero", "fsdp"),
        ("align.methods", ["va-pi", "va-pi"], "twice"),
        ("align.methods", ["reinforce"], "va-pi"),
        ("align.seeds", [], "at least 1"),
        ("align.reward", {"mse": 0.0, "perceptual": 0.0, "l1": 0.0, "embedding": 0.0}, "above 0"),
        ("align.budget", "seconds", "steps"),
        ("align.budget", -1.0, "greater than 0"),
        ("align.ste.tau", 0.0, "greater than 0"),
        ("align.ar_grpo.guidance_scale", 0.5, "greater than or equal to 1"),
        ("align.ar_grpo.rewards", {"class_likelihood": 0.0, "clip_score": 0.0, "hpsv2": 0.0}, "above 0"),
        ("align.ar_grpo.rewards", {"class_likelihood": 0.0, "clip_score": 1.0, "hpsv2": 0.0, "vlm": 1.0}, "no such"),
        ("align.reward.embedding", 1.0, "ste and tokenizer"),
        ("rivals.methods", ["va-pi"], "align.methods too"),
        ("rivals.temperatures", [0.8], "sampled anyway"),
        ("subset.image_size", 30, "token grid"),
        ("subset.splits", {"train": 10}, "not defined"),
        ("subset.path", "somewhere", "folder"),
        ("tokenizer.norm_groups", 48, "divide into 48 groups"),
        ("tokenizer.decoder_multipliers", [1, 1], "same number"),
        ("generator.heads", 3, "does not divide"),
        ("generator.kv_heads", 3, "divide by kv_heads"),
        ("sample.guidance_scales", [0.5], "greater than or equal to 1"),
        ("sample.control_temperatures", [1.0], "sampled anyway"),
        ("classifiers.scorer.split", "train", "must not learn"),
        ("score.extractors", ["reward-classifier"], "must not score"),
        ("score.reference_splits", ["scorer"], "trains the scorer"),
        ("score.reference_splits", ["heldout", "heldout"], "twice"),
        ("score.extractors", ["efficientnet-lite0", "efficientnet-lite0"], "twice"),
        ("sample.count", 9, "at least .*is_splits is 10"),
        ("subset.splits", {"train": 100, "scorer": 100, "heldout": 3}, "4 images of 'heldout'"),
        ("align.learning_rate", float("inf"), "finite number"),
        ("align.noise_ratio", float("nan"), "finite number|less than or equal"),
        ("classifiers.reward", None, r"needed by align\.reward\.perceptual"),
        ("classifiers.scorer", None, r"needed by score\.extractors"),
        ("subset.dataset", {"split": "train", "image_column": "image", "target_column": "label"}, "no other"),
        ("subset.source", "scenes", "task c2i needs one of mnist, folder, dataset, webdataset"),
        ("tokenizer.training", None, "needed where it is null"),
        ("generator.checkpoint", "c2i_XL_384.pt", "null where generator.checkpoint is imported"),
        ("ablations.noise_ratios", [0, 0.5], r"ablations\.noise_ratios\.0: must be written 0\.0"),
        ("ablations.regularizer_weights", [0.1, 0.12345678], r"must be written 0\.123457"),
        ("ablations.objectives", ["mse+beauty"], "neither prior nor made of"),
    ],
)
def test_an_impossible_value_is_refused_by_name(content, key, value, message):
    put(content, key, value)
    with pytest.raises(ParameterError, match=message) as caught:
        check_params(content)
    assert caught.value.name.startswith(key.rsplit(".", 1)[0])


def test_micro_batches_divide_what_one_process_has_of_a_step(content):
    content["launch"]["processes"] = 4
    for size in (2, 8, 16):  # of a share of 8; what is larger is all of it
        content["align"]["micro_batch_size"] = size
        check_params(content)
    content["align"]["micro_batch_size"] = 3
    with pytest.raises(ParameterError, match=r"align\.micro_batch_size: a process's share of 8"):
        check_params(content)


def test_the_network_that_rewards_a_rival_must_not_score_either(content):
    content["align"]["reward_network"] = "lpips"
    content["score"]["extractors"] = ["reward-classifier"]
    with pytest.raises(ParameterError, match="rewards ar-grpo"):
        check_params(content)
    content["rivals"]["methods"] = ["ste"]
    check_params(content)  # nobody is rewarded by it


def test_a_prompt_without_a_place_for_the_class_is_refused_where_prompts_are_used(content):
    content["align"]["ar_grpo"]["prompt"] = "a photo"
    check_params(content)
    content["align"]["ar_grpo"]["rewards"]["clip_score"] = 1.0
    with pytest.raises(ParameterError, match=r"align\.ar_grpo\.prompt"):
        check_params(content)


def test_a_method_has_its_own_learning_rate_or_the_common_one_and_the_common_budget(content):
    content["align"]["ste"]["learning_rate"] = 0.5
    content["align"]["ar_grpo"]["learning_rate"] = None
    content["align"]["budget"] = 30.0
    align = check_params(content).align
    assert align.optimization("ste").learning_rate == 0.5
    assert (
        align.optimization("ar-grpo").learning_rate == align.optimization("va-pi").learning_rate == align.learning_rate
    )
    assert {align.optimization(method).seconds for method in ("va-pi", "ste", "tokenizer")} == {30.0}


def test_the_options_of_another_method_do_not_change_what_a_method_is(content):
    before = check_params(content).align
    content["align"]["ste"]["tau"] = 0.5
    after = check_params(content).align
    assert before.of_method("va-pi") == after.of_method("va-pi") and before.of_method("ste") != after.of_method("ste")


def test_a_misspelt_parameter_is_refused_not_ignored(content):
    content["align"]["noise_ration"] = 0.5
    with pytest.raises(ParameterError, match=r"align\.noise_ration: there is no such parameter"):
        check_params(content)


def test_a_missing_parameter_is_named(content):
    del content["generator"]["training"]["steps"]
    with pytest.raises(ParameterError, match=r"generator\.training\.steps: the parameter is missing"):
        check_params(content)


def test_all_wrong_keys_stand_in_one_message(content):
    content["align"]["noise_ratio"] = 2.0
    content["sample"]["count"] = 0
    with pytest.raises(ParameterError) as caught:
        check_params(content)
    assert "align.noise_ratio" in str(caught.value) and "sample.count" in str(caught.value)


def test_a_missing_params_file_says_where_to_run(tmp_path):
    with pytest.raises(FileError, match="top of the repository"):
        load_params(tmp_path / "params.yaml")


def test_a_file_that_is_no_yaml_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_text("align: [")
    with pytest.raises(FileError, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")
