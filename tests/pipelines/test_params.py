"""params.yaml is refused, before any work, with the name of the key that is wrong."""

from pathlib import Path

import pytest
import yaml

from pipelines.params import check_params, load_params
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
        ("align.noise_ratio", "1e-1", "1.0e-5"),
        ("align.group_size", 1, "greater than or equal to 2"),
        ("align.group_size", 8.5, "integer"),
        ("align.micro_batch_size", 5, "does not divide"),
        ("align.methods", ["va-pi", "va-pi"], "twice"),
        ("align.methods", ["reinforce"], "va-pi"),
        ("align.seeds", [], "at least 1"),
        ("align.reward", {"mse": 0.0, "perceptual": 0.0, "l1": 0.0, "embedding": 0.0}, "above 0"),
        ("subset.image_size", 30, "token grid"),
        ("subset.splits", {"train": 10}, "not defined"),
        ("subset.path", "somewhere", "folder"),
        ("tokenizer.base_channels", 48, "multiple of 32"),
        ("tokenizer.decoder_multipliers", [1, 1], "same number"),
        ("generator.heads", 3, "does not divide"),
        ("generator.kv_heads", 3, "divide by kv_heads"),
        ("sample.guidance_scales", [0.5], "greater than or equal to 1"),
        ("sample.control_temperatures", [1.0], "sampled anyway"),
        ("classifiers.scorer.split", "train", "must not learn"),
        ("score.extractors", ["reward-classifier"], "must not score"),
        ("score.reference_splits", ["scorer"], "trains the scorer"),
    ],
)
def test_an_impossible_value_is_refused_by_name(content, key, value, message):
    put(content, key, value)
    with pytest.raises(ParameterError, match=message) as caught:
        check_params(content)
    assert caught.value.name.startswith(key.rsplit(".", 1)[0])


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
