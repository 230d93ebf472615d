import dataclasses
import os

import pytest

from tests.damage import check_every_flip_is_named
from tests.tiny import same_weights, tiny_generator, tiny_tokenizer
from vapi_core.errors import FileError
from vapi_core.files import read_checked_json, sha256_file, write_checked_json
from vapi_core.models.checkpoints import load_model, model_hash, save_model
from vapi_core.models.llamagen.checkpoints import export_official


@pytest.fixture
def source():
    return tiny_generator(seed=1)


@pytest.fixture
def target():
    return tiny_generator(seed=2)


@pytest.mark.parametrize(("kind", "make"), [("generator", tiny_generator), ("tokenizer", tiny_tokenizer)])
def test_a_saved_model_is_loaded_again_with_its_shape_and_in_eval_mode(tmp_path, kind, make):
    model = make(seed=1)
    save_model(tmp_path, kind, model.train())
    loaded = load_model(tmp_path, kind)
    assert same_weights(loaded, model) and loaded.config == model.config and not loaded.training


def test_the_json_says_what_the_weights_are_and_what_they_came_from(tmp_path, source):
    sha256 = save_model(tmp_path, "generator", source, tokens_sha256="abc")
    assert sha256 == model_hash(tmp_path, "generator") == sha256_file(tmp_path / "generator.safetensors")
    assert read_checked_json(tmp_path / "generator.json") == {
        "kind": "generator",
        "architecture": "Generator",
        "config": dataclasses.asdict(source.config),
        "sha256": sha256,
        "tokens_sha256": "abc",
    }


def test_the_same_model_gives_the_same_files(tmp_path, source):
    for name in ("a", "b"):
        save_model(tmp_path / name, "generator", source)
        export_official(tmp_path / name / "official.pt", source)
    for file in ("generator.safetensors", "generator.json", "official.pt"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_weights_from_elsewhere_are_refused(tmp_path, source, target):
    save_model(tmp_path / "a", "generator", source)
    save_model(tmp_path / "b", "generator", target)
    os.replace(tmp_path / "b/generator.safetensors", tmp_path / "a/generator.safetensors")
    with pytest.raises(
        FileError, match="generator.safetensors: the weights are not those that generator.json"
    ) as caught:
        load_model(tmp_path / "a", "generator", remedy="Run: dvc repro generator")
    assert str(caught.value).endswith("Run: dvc repro generator")


@pytest.mark.parametrize("lost", ["generator.json", "generator.safetensors"])
def test_a_missing_file_is_named_with_its_remedy(tmp_path, source, lost):
    save_model(tmp_path, "generator", source)
    (tmp_path / lost).unlink()
    with pytest.raises(FileError, match=f"{lost}: the file is missing. Run: dvc repro generator"):
        load_model(tmp_path, "generator", remedy="Run: dvc repro generator")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "the file is damaged"),
        ("[]", "the file is damaged"),
    ],
)
def test_a_damaged_description_is_named(tmp_path, source, content, problem):
    save_model(tmp_path, "generator", source)
    (tmp_path / "generator.json").write_text(content)
    for read in (load_model, model_hash):
        with pytest.raises(FileError, match=rf"generator\.json: .*{problem}"):
            read(tmp_path, "generator")


def test_a_description_of_something_else_is_named(tmp_path):
    write_checked_json(tmp_path / "generator.json", {"config": {}})
    for read in (load_model, model_hash):
        with pytest.raises(FileError, match=r"generator\.json: the file does not describe a model"):
            read(tmp_path, "generator")


def test_whatever_byte_of_the_description_flips_it_is_named(tmp_path, source):
    save_model(tmp_path, "generator", source)
    check_every_flip_is_named(tmp_path / "generator.json", lambda: load_model(tmp_path, "generator"), flips=50)


def test_a_configuration_of_another_version_is_named(tmp_path, source):
    save_model(tmp_path, "generator", source)
    description = read_checked_json(tmp_path / "generator.json")
    description["config"]["experts"] = 8
    write_checked_json(tmp_path / "generator.json", description)
    with pytest.raises(FileError, match=r"generator\.json: no configuration of a generator .*experts"):
        load_model(tmp_path, "generator")
