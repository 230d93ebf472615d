"""The command from a folder of images and a DrawBench-style file to a score, with a tiny CLIP in the real format."""

import json
import shutil

import numpy as np
import pytest

from pipelines.cli.__main__ import main
from tests.tiny_vision import save_tiny_clip
from vapi_core.scoring.geneval.folder import write_sample


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny-clip"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "drawbench.csv").write_text("Prompts,Category\nA red car,Colors\nTwo cats,Counting\n")
    generator = np.random.default_rng(0)
    for prompt in range(2):
        for sample in range(2):
            write_sample(tmp_path / "images", prompt, sample, generator.integers(0, 256, (32, 32, 3), np.uint8))
    return tmp_path / "images"


def command(folder, weights, *more: str) -> list[str]:
    prompts = str(folder.parent / "drawbench.csv")
    return ["score", str(folder), "--prompts", prompts, "--weights", weights, "--device", "cpu", *more]


def test_a_folder_becomes_a_score_that_names_its_model(folder, weights, capsys):
    assert main(command(folder, weights, "--by", "hpsv2")) == 0
    out, err = capsys.readouterr()
    assert "hpsv2: 4/4" in err
    assert out.startswith("hpsv2 by tiny-clip (") and "Colors: " in out and "(4 images of 2 prompts)" in out
    score = json.loads((folder / "hpsv2.json").read_text())
    assert score["images"] == 4 and set(score["categories"]) == {"Colors", "Counting"}


def test_the_score_of_one_prompt_has_no_standard_error(folder, weights, capsys):
    (folder.parent / "drawbench.csv").write_text("Prompts,Category\nA red car,Colors\n")
    shutil.rmtree(folder / "00001")
    assert main(command(folder, weights)) == 0
    out = capsys.readouterr().out
    assert "(2 images of 1 prompts)" in out and "standard error" not in out and "nan" not in out


def test_a_missing_image_is_named_and_the_exit_code_is_1(folder, weights, capsys):
    (folder / "00001" / "samples" / "0001.png").unlink()
    assert main(command(folder, weights)) == 1
    assert "1 images are missing, 0 cannot be read; the scores are those of the other 3" in capsys.readouterr().err
    assert json.loads((folder / "clip.json").read_text())["missing"] == [str(folder / "00001/samples/0001.png")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--prompts", "nowhere.csv"), "nowhere.csv: the file is missing"),
        (("--by", "taste"), "--by: there is no 'taste'; there are clip, hpsv2."),
        (("--weights", "nowhere.pt"), "nowhere.pt: the weights of ViT-L-14-quickgelu are missing"),
    ],
)
def test_what_is_wrong_with_the_command_is_said_in_one_line(folder, weights, capsys, more, message):
    assert main(command(folder, weights, *more)) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and len(err.splitlines()) == 1


def test_a_folder_that_is_not_there_is_named(folder, weights, capsys):
    assert main(["score", "nowhere", *command(folder, weights)[2:]]) == 1
    assert capsys.readouterr().err.startswith("error: nowhere: there is no such folder")
