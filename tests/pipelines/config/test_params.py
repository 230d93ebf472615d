"""params.yaml is refused, before any work, with the name of the key that is wrong."""

from pathlib import Path

import pytest

from pipelines.config.loading import check_params, load_params
from pipelines.config.params import decimal
from pipelines.config.profiles import profile_names, read_profile
from vapi_core.errors import FileError, ParameterError


@pytest.fixture
def content():
    return read_profile("mnist")


def put(content, key, value):
    """Sets a dotted key."""
    *sections, last = key.split(".")
    for section in sections:
        content = content[section]
    content[last] = value


def test_the_params_file_of_the_repository_is_valid():
    assert load_params(Path("params.yaml")).profile


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_is_valid_and_says_its_name(name):
    assert check_params(read_profile(name)).profile == name


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("align.noise_ratio", 1.5, "must be at most 1"),
        ("align.noise_ratio", "a tenth", "valid number"),
        ("align.noise_ratio", float("nan"), "finite number|must be"),
        ("align.group_size", 1, "must be at least 2"),
        ("align.group_size", 8.5, "integer"),
        ("align.learning_rate", float("inf"), "finite number"),
        ("align.budget", "seconds", "steps"),
        ("align.budget", -1.0, "must be above 0"),
        ("align.seeds", [], "at least 1"),
        ("align.seeds", [-1], "must be at least 0"),
        ("align.keep_every", -1, "must be at least 0"),
        ("align.betas", [0.9, 1.0], "must be below 1"),
        ("align.reward.mse", "one", "valid number"),
        ("launch.strategy", "zero", "fsdp"),
        ("variants.ste.align.tau", 0.0, "must be above 0"),
        ("variants.ar-grpo.align.guidance_scale", 0.5, "must be at least 1"),
        ("variants.va-pi.guidance_scales", [0.5], "must be at least 1"),
        ("variants.va-pi.table", "a/b", "pattern"),
        ("controls.base.temperatures", [], "at least 1"),
        ("controls.base.temperatures", [0.0], "must be above 0"),
        ("sample.guidance_scales", [0.5], "must be at least 1"),
        ("score.extractors", ["resnet"], "efficientnet-lite0"),
        ("subset.image_size", 10_000, "must be at most 8192"),
    ],
)
def test_an_impossible_value_is_refused_by_name(content, key, value, message):
    put(content, key, value)
    with pytest.raises(ParameterError, match=message) as caught:
        check_params(content)
    assert caught.value.name.startswith(key)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("align", "noise_ration"),
        ("generator", "dims"),
        ("tokenizer.training", "step"),
        ("variants.va-pi", "seed"),
        ("controls.base", "temperature"),
        ("score", "kid"),
    ],
)
def test_a_misspelt_parameter_is_refused_not_ignored(content, section, key):
    put(content, f"{section}.{key}", 1)
    with pytest.raises(ParameterError, match=rf"{section}\.{key}: there is no such parameter"):
        check_params(content)


def test_a_misspelt_name_of_a_variant_cannot_be_one_of_a_stage_or_a_file(content):
    content["variants"]["va pi/2"] = content["variants"]["va-pi"]
    with pytest.raises(ParameterError, match=r"variants\.va pi/2"):
        check_params(content)


def test_a_missing_parameter_is_named(content):
    del content["generator"]["training"]["steps"]
    with pytest.raises(ParameterError, match=r"generator\.training\.steps: the parameter is missing"):
        check_params(content)


def test_a_missing_parameter_of_an_alignment_is_named(content):
    del content["align"]["batch_size"]
    with pytest.raises(ParameterError, match=r"align\.batch_size: the parameter is missing"):
        check_params(content)


def test_a_section_that_a_profile_does_not_use_may_be_left_out(content):
    for section in ("launch", "captions"):
        del content[section]
    params = check_params(content)
    assert params.launch.processes == 1 and params.captions is None


def test_all_wrong_keys_stand_in_one_message(content):
    content["generator"]["dim"] = 0
    content["sample"]["count"] = 0
    with pytest.raises(ParameterError) as caught:
        check_params(content)
    assert "generator.dim" in str(caught.value) and "sample.count" in str(caught.value)


def test_a_missing_params_file_says_where_to_run(tmp_path):
    with pytest.raises(FileError, match="top of the repository"):
        load_params(tmp_path / "params.yaml")


def test_a_file_that_is_no_yaml_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_text("align: [")
    with pytest.raises(FileError, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("content", ["", "[1, 2]", "five"])
def test_a_file_that_holds_no_parameters_is_refused(tmp_path, content):
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises((FileError, ParameterError), match=r"params\.yaml"):
        load_params(tmp_path / "params.yaml")


def test_a_number_without_a_point_is_one_as_it_is_to_dvc(tmp_path):
    text = Path("params.yaml").read_text(encoding="utf-8")
    assert "learning_rate: 6.0e-4" in text
    (tmp_path / "params.yaml").write_text(text.replace("learning_rate: 6.0e-4", "learning_rate: 6e-4"))
    assert load_params(tmp_path / "params.yaml").align.shared["learning_rate"] == 6e-4


def test_numbers_stand_in_names_as_people_write_them():
    assert [decimal(value) for value in (1, 0.7, 1.75, 2.0, 1e-05)] == ["1.0", "0.7", "1.75", "2.0", "1e-05"]
