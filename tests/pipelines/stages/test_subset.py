"""Stage `subset`: what it reads, what it says, and what it refuses before it reads images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.config.loading import check_params
from pipelines.config.paths import PROMPTS, SUBSET
from pipelines.config.profiles import read_profile
from pipelines.frame.inputs import open_prompts
from pipelines.stages import generator, subset
from tests.pipelines.stages.test_janus import fill_workplace, run, tiny
from vapi_core.data.subset import Subset
from vapi_core.errors import FileError

ROOT = Path(__file__).parents[3]


def of_folder(path: Path, profile: str = "mnist", **changes):
    """Params of a profile whose images are those of a folder."""
    content = read_profile(profile, ROOT)
    splits = dict.fromkeys(content["subset"]["splits"], 8)
    content["subset"] |= {"source": "folder", "path": str(path), "splits": splits} | changes
    content["classifiers"]["uci"] = None  # which reads digits
    content["score"]["extractors"] = [name for name in content["score"]["extractors"] if name != "uci-classifier"]
    return check_params(content)


def write_folder(path: Path, names, images: int = 8) -> None:
    draws = np.random.default_rng(0)
    for name in names:
        (path / name).mkdir(parents=True)
        for i in range(images):
            Image.fromarray(draws.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path / name / f"{i}.png")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("turned", [True, False])
def test_the_parameter_says_whether_photographs_are_turned(tmp_path, turned):
    exif = Image.Exif()
    exif[0x0112] = 6  # the left side is up
    for i in range(30):
        path = tmp_path / "images" / "a" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[:, :32, 0], pixels[..., 1] = 255, 8 * i
        Image.fromarray(pixels).save(path, exif=exif, quality=95)
    run(subset, of_folder(tmp_path / "images", exif_orientation=turned))
    reds = Subset.open(SUBSET).images[..., 0].astype(int)
    upper, left = reds[:, :12].mean(), reds[:, :, :12].mean()
    assert (upper > 200 and left < 160) if turned else (left > 200 and upper < 160)


def test_it_says_how_many_files_were_passed_over(tmp_path, capsys):
    write_folder(tmp_path / "images", ["a", "b", "c"])
    for name in ("a/x.heic", "b/y.heic", "notes.txt"):
        (tmp_path / "images" / name).write_text("no image")
    run(subset, of_folder(tmp_path / "images"))
    assert "images: passed over, as no images by their names: 2 .heic, 1 .txt" in capsys.readouterr().err


def test_folders_whose_numbers_are_not_those_of_the_checkpoint_are_refused_before_any_image_is_read(tmp_path):
    write_folder(tmp_path / "images", ["1", "2", "10"])
    for file in (tmp_path / "images").rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(FileError, match="images: the names of the 3 classes are numbers, but not 0 to 2"):
        run(subset, of_folder(tmp_path / "images", "llamagen-smoke"))


def test_a_generator_that_is_imported_later_refuses_them_too(tmp_path):
    write_folder(tmp_path / "images", ["1", "2", "10"])
    run(subset, of_folder(tmp_path / "images"))  # trained here, class 1 may be number 0
    assert Subset.open(SUBSET).classes == ("1", "2", "10")
    with pytest.raises(FileError, match="subset: the names of the 3 classes are numbers, but not 0 to 2"):
        run(generator, of_folder(tmp_path / "images", "llamagen-smoke"))


@pytest.mark.parametrize("escaped", [True, False])
def test_a_line_separator_in_a_prompt_stays_there(tmp_path, escaped):
    content = tiny(fill_workplace(tmp_path))
    text = "a photo of\u2028a bench\x85and more"
    prompt = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": text}
    lines = "\ufeff" + json.dumps(prompt, ensure_ascii=escaped) + "\r\n"
    (tmp_path / "prompts.jsonl").write_text(lines, encoding="utf-8", newline="")
    run(subset, check_params(content))
    assert [p.metadata for p in open_prompts()] == [prompt]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (rb'{"tag": "single_object", "include": [], "prompt": "a \ud83d cat"}', "line 2: .*half of a character"),
        (b"[" * 100_000, "line 2: .*nested too deeply"),
        (b'{"prompt": "caf\xe9"}', "line 2 is not UTF-8"),
    ],
)
def test_a_prompt_that_no_file_could_hold_is_named_before_any_image_is_read(tmp_path, monkeypatch, line, problem):
    content = tiny(fill_workplace(tmp_path))
    with open(tmp_path / "prompts.jsonl", "rb+") as file:
        first = file.readline()
        file.truncate(0)
        file.seek(0)
        file.write(first + line + b"\n")
    monkeypatch.setattr(subset, "plan_images", lambda params: pytest.fail("images were looked for"))
    with pytest.raises(FileError, match=r"prompts\.jsonl: .*" + problem):
        run(subset, check_params(content))


def test_prompts_that_changed_since_are_named(tmp_path):
    run(subset, check_params(tiny(fill_workplace(tmp_path))))
    assert [p.text for p in open_prompts()] == ["a photo of a dog", "a photo of two cats"]
    PROMPTS.write_text(PROMPTS.read_text().replace("dog", "cow"))
    with pytest.raises(FileError, match=r"subset/prompts\.jsonl: the file is damaged.*dvc repro subset"):
        open_prompts()
