"""Prompts, folders and results: what is wrong is named and counted, and the official files are read and written."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from vapi_core.data.image_files import read_rgb
from vapi_core.errors import FileError
from vapi_core.scoring.geneval import FoundObject
from vapi_core.scoring.geneval_folder import (
    GenEvalResult,
    Prompt,
    append_results,
    read_folder,
    read_prompts,
    read_results,
    write_prompts,
    write_results,
    write_sample,
)

DIGITS = ("one", "two")
GOOD = {"tag": "single_object", "include": [{"class": "one", "count": 1}], "prompt": "a photo of a one"}
GREY = np.full((8, 8, 3), 128, np.uint8)


def write_lines(path, *items):
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in items))
    return path


def clause(**changes):
    return GOOD | {"include": [GOOD["include"][0] | changes]}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (GOOD | {"tag": "two_objects"}, "line 2: unknown tag 'two_objects'; the tags are single_object, "),
        (clause(**{"class": "three"}), "line 2: unknown class 'three', which is none of the detector's 2"),
        (clause(count=0), "line 2: the count 0 of one is not a positive number"),
        (clause(color="mauve"), "line 2: unknown color 'mauve'; the colors are red, "),
        (clause(position=["left of", 0]), "line 2: the position .* earlier clause"),
        (clause(position=["beside", 0]), "line 2: the position"),
        (GOOD | {"exclude": [{"class": "four", "count": 1}]}, "line 2: unknown class 'four'"),
        (GOOD | {"include": "one"}, "line 2: 'include' is not a list of clauses"),
        ({"tag": "colors"}, "line 2: it has no 'prompt'"),
        ("{", "line 2: not JSON"),
        ("[" * 100_000, r"line 2: not JSON \(it is nested too deeply\)"),
        (r'{"prompt": "a \ud83d cat"}', "line 2: not JSON .it holds half of a character"),
    ],
)
def test_a_wrong_line_of_a_prompt_file_is_named(tmp_path, line, problem):
    path = write_lines(tmp_path / "prompts.jsonl", GOOD, line)
    with pytest.raises(FileError, match=problem) as error:
        read_prompts(path, DIGITS)
    assert error.value.path == path


def test_wrong_lines_are_counted_and_the_first_named(tmp_path):
    path = write_lines(tmp_path / "prompts.jsonl", *[GOOD | {"tag": f"tag{i}"} for i in range(8)], GOOD)
    with pytest.raises(FileError, match="8 wrong: line 1: .*'tag0'.*line 5: .*; and 3 more"):
        read_prompts(path, DIGITS)


def test_a_missing_and_an_empty_prompt_file_are_refused(tmp_path):
    with pytest.raises(FileError, match="missing"):
        read_prompts(tmp_path / "nowhere.jsonl", DIGITS)
    with pytest.raises(FileError, match="no prompt"):
        read_prompts(write_lines(tmp_path / "empty.jsonl"), DIGITS)


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85"])
@pytest.mark.parametrize("escaped", [True, False])
def test_a_prompt_is_a_line_and_a_byte_order_mark_is_no_part_of_it(tmp_path, inside, escaped):
    wanted = GOOD | {"prompt": f"a photo of{inside}a one"}
    text = "".join(json.dumps(line, ensure_ascii=escaped) + "\n" for line in (wanted, GOOD))
    (tmp_path / "prompts.jsonl").write_text("\ufeff" + text, encoding="utf-8")
    prompts = read_prompts(tmp_path / "prompts.jsonl", DIGITS)
    assert [p.metadata for p in prompts] == [wanted, GOOD]
    write_prompts(tmp_path, prompts)
    write_sample(tmp_path, 0, 0, GREY)
    assert read_folder(tmp_path, DIGITS).samples[0].prompt == prompts[0]


def test_prompts_that_are_not_utf8_or_a_pipe_are_named(tmp_path):
    (tmp_path / "prompts.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n{caf\xe9}\n")
    with pytest.raises(FileError, match=r"prompts\.jsonl: .*line 2 is not UTF-8"):
        read_prompts(tmp_path / "prompts.jsonl", DIGITS)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="pipe: this is no file"):
        read_prompts(tmp_path / "pipe", DIGITS)


def test_a_file_whose_name_is_an_enormous_number_does_not_make_as_many_missing(tmp_path):
    write_prompts(tmp_path, [Prompt(GOOD)])
    write_sample(tmp_path, 0, 300_000_000_000, GREY)
    with pytest.raises(FileError, match="an image has the number 300000000000"):
        read_folder(tmp_path, DIGITS)


def test_a_folder_comes_back_as_it_was_written(tmp_path):
    prompts = [Prompt(GOOD), Prompt(GOOD | {"prompt": "ein Foto von 1 – groß"})]
    write_prompts(tmp_path, prompts)
    paths = [write_sample(tmp_path, p, s, GREY) for p in range(2) for s in range(2)]
    assert paths[1] == tmp_path / "00000" / "samples" / "0001.png"
    samples = read_folder(tmp_path, DIGITS)
    assert [s.path for s in samples.samples] == paths and samples.missing == []
    assert [s.prompt for s in samples.samples] == [prompts[0], prompts[0], prompts[1], prompts[1]]
    assert np.array_equal(np.asarray(read_rgb(paths[0])), GREY)


def test_prompts_are_not_written_over_others_whose_images_may_be_there(tmp_path):
    write_prompts(tmp_path, [Prompt(GOOD), Prompt(GOOD)])
    write_prompts(tmp_path, [Prompt(GOOD), Prompt(GOOD)])  # the same again
    with pytest.raises(FileError, match="00001/metadata.jsonl: there is another prompt already"):
        write_prompts(tmp_path, [Prompt(GOOD), Prompt(GOOD | {"prompt": "another"}), Prompt(GOOD)])
    assert not (tmp_path / "00002").exists()


def test_the_names_that_other_scripts_give_to_samples_are_read_in_numeric_order(tmp_path):
    write_prompts(tmp_path, [Prompt(GOOD)])
    for name in ("00010.png", "2.png", "grid.png", "00001.jpg"):
        (tmp_path / "00000" / "samples").mkdir(exist_ok=True)
        Image.fromarray(GREY).save(tmp_path / "00000" / "samples" / name)
    (tmp_path / "notes").mkdir()
    assert [s.path.name for s in read_folder(tmp_path, DIGITS).samples] == ["2.png", "00010.png"]


def test_images_that_one_prompt_lacks_and_another_has_are_missing(tmp_path):
    write_prompts(tmp_path, [Prompt(GOOD)] * 3)
    for prompt, sample in [(0, 0), (0, 1), (1, 1)]:
        write_sample(tmp_path, prompt, sample, GREY)
    samples = read_folder(tmp_path, DIGITS)
    assert len(samples.samples) == 3
    assert [str(p.relative_to(tmp_path)) for p in samples.missing] == [
        "00001/samples/0000.png",
        "00002/samples/0000.png",
        "00002/samples/0001.png",
    ]


def test_a_folder_with_a_wrong_prompt_without_prompts_or_without_images_is_refused(tmp_path):
    with pytest.raises(FileError, match="no such folder"):
        read_folder(tmp_path / "nowhere", DIGITS)
    with pytest.raises(FileError, match="no image in it. A folder holds 00000/metadata.jsonl"):
        read_folder(tmp_path, DIGITS)
    write_prompts(tmp_path, [Prompt(GOOD), Prompt(clause(**{"class": "nine"})), Prompt(GOOD)])
    (tmp_path / "00002" / "metadata.jsonl").unlink()
    with pytest.raises(
        FileError, match="2 prompts are wrong: 00001/metadata.jsonl: unknown class 'nine'.*00002.*missing"
    ):
        read_folder(tmp_path, DIGITS)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_image_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "0000.png"
    if content is None:  # cut off in the middle
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        content = path.read_bytes()[:6000]
    path.write_bytes(content)
    with pytest.raises(FileError, match="0000.png: the file cannot be read as an image") as error:
        read_rgb(path)
    assert error.value.path == path


def test_results_of_prompts_with_a_line_separator_are_one_line_each(tmp_path):
    metadata = json.dumps(GOOD, ensure_ascii=False)
    line = {"filename": "x", "tag": "colors", "prompt": "a\u2028b", "correct": True, "reason": "", "details": "{}"}
    text = json.dumps(line | {"metadata": metadata}, ensure_ascii=False) + "\n"
    (tmp_path / "results.jsonl").write_text("\ufeff" + text * 2, encoding="utf-8")
    assert [r.prompt for r in read_results(tmp_path / "results.jsonl")] == ["a\u2028b"] * 2


def result(name: str = "0000.png", correct: bool = True) -> GenEvalResult:
    box = np.array([1, 2, 3, 4, 0.5], np.float32)
    return GenEvalResult.of(name, Prompt(GOOD), correct, "why", {"one": [FoundObject(0, box)]}, "a detector", "ab12")


def test_results_have_the_official_fields_and_come_back_as_they_were(tmp_path):
    path = tmp_path / "results.jsonl"
    write_results(path, [result("a")])
    append_results(path, [result("b", False)])
    assert read_results(path) == [result("a"), result("b", False)]
    first = json.loads(path.read_text().splitlines()[0])
    assert list(first)[:7] == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert json.loads(first["metadata"]) == GOOD and json.loads(first["details"]) == {
        "one": [[1.0, 2.0, 3.0, 4.0, 0.5]]
    }


def test_results_of_the_official_script_are_read(tmp_path):
    official = {
        "filename": "images\\/00000\\/samples\\/0000.png",
        "tag": "single_object",
        "prompt": "a photo of a one",
        "correct": True,
        "reason": "",
        "metadata": json.dumps(GOOD),
        "details": "{}",
    }
    path = write_lines(tmp_path / "results.jsonl", json.dumps(official).replace("\\\\", "\\"))
    (read,) = read_results(path)
    assert read.filename == "images/00000/samples/0000.png" and read.detector is None


def test_a_last_line_that_was_cut_off_is_left_out_and_any_other_damage_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    write_results(path, [result("a"), result("b")])
    whole = path.read_text()
    path.write_text(whole[:-30])
    assert read_results(path) == [result("a")]
    path.write_text("{}\n" + whole)
    with pytest.raises(FileError, match="line 1 is not a result"):
        read_results(path)
