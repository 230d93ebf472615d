"""The command from a folder of images to scores, with tiny models in the real formats."""

import json

import numpy as np
import pytest
from PIL import Image

from pipelines.cli.__main__ import main
from tests.tiny_vision import save_tiny_clip, save_tiny_mask2former
from vapi_core.scoring.geneval.folder import Prompt, read_results, write_prompts, write_sample


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "--detector": str(save_tiny_mask2former(root / "tiny-detector")),
        "--colors": str(save_tiny_clip(root / "tiny-clip")),
    }


@pytest.fixture
def folder(tmp_path):
    clause = {"class": "toilet", "count": 1}
    prompts = [
        {"tag": "single_object", "include": [clause], "prompt": "a photo of a toilet"},
        {"tag": "colors", "include": [clause | {"color": "red"}], "prompt": "a photo of a red toilet"},
    ]
    write_prompts(tmp_path / "images", [Prompt(p) for p in prompts])
    generator = np.random.default_rng(0)
    for prompt in range(2):
        for sample in range(2):  # so flat that the detector's input stays small
            write_sample(tmp_path / "images", prompt, sample, generator.integers(0, 256, (8, 160, 3), np.uint8))
    return tmp_path / "images"


def command(folder, models, *more: str) -> list[str]:
    given = {"--device": "cpu"} | models
    return ["geneval", str(folder), *(part for pair in given.items() for part in pair), *more]


def test_a_folder_becomes_results_and_scores_that_name_the_detector(folder, models, capsys):
    assert main(command(folder, models)) == 0
    out, err = capsys.readouterr()
    assert "Task breakdown" in out and "Detector: Mask2Former tiny-detector (" in out and "| overall |" in out
    assert "geneval: 4/4" in err
    results = read_results(folder / "results.jsonl")
    assert len(results) == 4 and all("colors by CLIP tiny-clip (" in str(r.detector) for r in results)
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["images"] == 4 and scores["overall"]["prompts"] == 2 and scores["detector"] == results[0].detector
    before = (folder / "results.jsonl").read_bytes()
    assert main(command(folder, models)) == 0  # nothing left to do
    assert (folder / "results.jsonl").read_bytes() == before


def test_the_results_of_the_official_script_get_their_scores_without_any_model(tmp_path, capsys):
    """Its lines have neither detector nor hash."""
    lines = [
        {"filename": f"x/{prompt:05}/samples/{i:04}.png", "tag": tag, "prompt": tag, "correct": i < right, "reason": ""}
        | {"metadata": json.dumps({"tag": tag, "prompt": tag}), "details": "{}"}
        for prompt, (tag, right) in enumerate([("counting", 1), ("colors", 4), ("colors", 2)])
        for i in range(4)
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["geneval", str(path), "--device", "cpu"]) == 0
    assert "Detector: not named in the results" in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["overall"]["mean"] == pytest.approx((0.25 + 0.75) / 2)
    assert scores["tasks"]["colors"]["mean"] == pytest.approx(0.75) and scores["images"] == 12


def test_the_options_of_the_official_script_stand_in_the_results(folder, models):
    assert main(command(folder, models, "--option", "threshold=0.2", "--option", "crop=0")) == 0
    assert str(read_results(folder / "results.jsonl")[0].detector).endswith("; threshold=0.2; crop=False")


def test_images_that_could_not_be_scored_are_named_and_the_exit_code_is_1(folder, models, capsys):
    (folder / "00000" / "samples" / "0000.png").write_bytes(b"")
    (folder / "00001" / "samples" / "0000.png").unlink()
    assert main(command(folder, models)) == 1
    err = capsys.readouterr().err
    assert "1 images are missing, 1 cannot be read; the scores are those of the other 2" in err
    assert (
        "00000/samples/0000.png: the file cannot be read as an image" in err
        and "00001/samples/0000.png: the image is miss" in err
    )
    assert len(read_results(folder / "results.jsonl")) == 2


def test_an_implausible_detector_is_refused_before_it_scores_anything(folder, models, tmp_path, capsys):
    fresh = save_tiny_mask2former(tmp_path / "fresh", certainty=1.0)
    Image.new("RGB", (160, 8)).save(tmp_path / "photo.jpg")
    more = ("--check-images", str(tmp_path))
    assert main(command(folder, models | {"--detector": str(fresh)}, *more)) == 1
    assert "error: " in (err := capsys.readouterr().err) and "nearly uniform" in err
    assert not (folder / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--option", "treshold=0.2"), "there is no option 'treshold'; there are threshold, "),
        (("--option", "threshold=low"), "threshold=low is not a number"),
        (("--option", "threshold=2"), "threshold: 2.0 is not between 0 and 1"),
        (("--option", "bgcolor=nothing"), "bgcolor: 'nothing' is neither a color nor 'original'"),
        (("--device", "abacus"), "torch knows no device 'abacus'"),
        (("--detector", "nowhere"), "there is no Mask2Former that can be loaded"),
        (("--check-images", "nowhere"), "no image in it to check the detector on"),
    ],
)
def test_what_is_wrong_with_the_command_is_said_in_one_line(folder, models, capsys, more, message):
    assert main(command(folder, models, *more)) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and message in last


def test_a_folder_that_is_not_there_is_named_before_any_model_is_read(capsys):
    assert main(["geneval", "nowhere", "--device", "cpu", "--detector", "no model either"]) == 1
    assert capsys.readouterr().err.startswith("error: nowhere: there is no such folder")
