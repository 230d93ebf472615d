"""What leaves the project fits other people's scripts."""

import os

import numpy as np
import pytest
import torch

from pipelines.cli.__main__ import main
from tests.tiny import tiny_generator, tiny_tokenizer
from vapi_core.arrays import write_manifest
from vapi_core.files import write_checked_json
from vapi_core.models.checkpoints import save_model
from vapi_core.models.llamagen.checkpoints import import_official


@pytest.mark.parametrize(("kind", "make"), [("generator", tiny_generator), ("tokenizer", tiny_tokenizer)])
def test_an_aligned_model_goes_to_an_official_file_and_back_unchanged(tmp_path, kind, make):
    model = make(seed=1)
    save_model(tmp_path / "aligned", kind, model, base_sha256="abc")
    assert main(["export", "weights", str(tmp_path / "aligned"), str(tmp_path / "official.pt")]) == 0
    content = torch.load(tmp_path / "official.pt", weights_only=True)
    assert list(content) == ["model"] and list(content["model"]) == list(model.state_dict())
    again = import_official(tmp_path / "official.pt", make(seed=2)).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_a_set_of_images_goes_to_the_file_that_adms_evaluator_reads(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    folder = tmp_path / "t1.0-g1.0-0"
    folder.mkdir()
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", np.arange(5))
    write_manifest(folder, {"kind": "samples", "shape": [5, 8, 8, 3]}, ("images.npy", "labels.npy"))
    assert main(["export", "images", str(folder), str(tmp_path / "samples.npz")]) == 0
    with np.load(tmp_path / "samples.npz") as written:
        assert written.files == ["arr_0"]
        np.testing.assert_array_equal(written["arr_0"], images)


@pytest.mark.parametrize(("what", "problem"), [("weights", "there is no model"), ("images", "the file is missing")])
def test_a_folder_without_anything_to_export_is_named(tmp_path, capsys, what, problem):
    assert main(["export", what, str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 1
    assert "nowhere" in (told := capsys.readouterr().err) and problem in told
    assert not (tmp_path / "out").exists()


def test_a_misspelt_place_makes_no_folder_and_a_folder_is_no_file(tmp_path, capsys):
    save_model(tmp_path / "aligned", "tokenizer", tiny_tokenizer(), base_sha256="abc")
    misspelt = tmp_path / "resluts" / "official.pt"
    for place, problem in ((misspelt, f"there is no folder {misspelt.parent}"), (tmp_path, "this is a folder")):
        assert main(["export", "weights", str(tmp_path / "aligned"), str(place)]) == 1
        assert f"{place}: {problem}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["aligned"]


@pytest.mark.parametrize("shape", [None, "abc", [2, 3], [2, 4, 4, None]])
def test_a_set_whose_manifest_has_no_shape_is_told(tmp_path, capsys, shape):
    write_checked_json(tmp_path / "manifest.json", {"kind": "samples", "shape": shape})
    assert main(["export", "images", str(tmp_path), str(tmp_path / "out.npz")]) == 1
    assert "manifest.json: the manifest is damaged" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_and_a_name_that_is_no_text_are_told(tmp_path, capsys):
    save_model(tmp_path / "aligned", "tokenizer", tiny_tokenizer(), base_sha256="abc")
    os.mkfifo(tmp_path / "pipe")
    long = tmp_path / ("x" * 300)
    odd = tmp_path / os.fsdecode(b"odd\xff.pt")
    for place, problem in ((tmp_path / "pipe", "this is a device or a pipe"), (long, "the name is too long")):
        assert main(["export", "weights", str(tmp_path / "aligned"), str(place)]) == 1
        assert problem in capsys.readouterr().err
    assert main(["export", "weights", str(tmp_path / "aligned"), str(odd)]) == 0 and odd.is_file()
    assert "odd\\udcff.pt" in capsys.readouterr().out
