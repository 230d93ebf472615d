"""The evaluation of a folder goes on where it was, and nothing is lost to an image that cannot be read."""

import numpy as np
import pytest

from vapi_core.errors import FileError
from vapi_core.scoring.geneval.folder import Prompt, read_results, write_prompts, write_sample
from vapi_core.scoring.geneval.rules import Detections, GenEvalOptions
from vapi_core.scoring.geneval.run import Judge, evaluate_folder


class BrightnessDetector:
    """Finds a "one" in bright images."""

    def __init__(self, name: str = "brightness"):
        self.name, self.seen, self.batches = name, 0, []

    def detect(self, images, minimum_score):
        self.batches.append((len(images), minimum_score))
        self.seen += len(images)
        row = np.array([[0, 0, 4, 4, 0.95]], np.float32)
        return [Detections({"one": row} if np.asarray(image).mean() > 100 else {}) for image in images]


def judge(detector, **options) -> Judge:
    return Judge(detector, lambda name, crops: ["red"] * len(crops), "always red", ("one",), GenEvalOptions(**options))


def image(brightness: int) -> np.ndarray:
    return np.full((8, 8, 3), brightness, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Three prompts with two images each: the first of each bright, the second dark."""
    clause = {"class": "one", "count": 1}
    tasks = [("single_object", clause), ("counting", clause), ("colors", clause | {"color": "blue"})]
    write_prompts(tmp_path, [Prompt({"tag": t, "include": [c], "prompt": f"{t} one"}) for t, c in tasks])
    for prompt in range(3):
        write_sample(tmp_path, prompt, 0, image(200))
        write_sample(tmp_path, prompt, 1, image(10))
    return tmp_path


def test_every_image_gets_a_decision_with_reason_and_detector(folder):
    detector = BrightnessDetector()
    counts = []
    evaluation = evaluate_folder(folder, folder / "r.jsonl", judge(detector), 4, lambda *count: counts.append(count))
    assert [r.correct for r in evaluation.results] == [True, False, True, False, False, False]
    assert evaluation.results[4].reason == "expected blue one>=1, found 0 blue; and 1 red"
    assert {r.detector for r in evaluation.results} == {"brightness; colors by always red"}
    assert read_results(folder / "r.jsonl") == evaluation.results
    assert counts == [(0, 6), (4, 6), (6, 6)]
    assert detector.batches == [(4, 0.3), (2, 0.3)]  # the lowest threshold that a prompt of the batch has


def test_an_interrupted_run_goes_on_and_ends_with_the_same_file(folder):
    path = folder / "r.jsonl"
    whole = evaluate_folder(folder, path, judge(BrightnessDetector()))
    expected = path.read_text()
    lines = expected.splitlines(keepends=True)
    path.write_text(lines[3] + lines[0] + lines[5][:40])  # two results, and one that a kill cut off
    detector = BrightnessDetector()
    assert evaluate_folder(folder, path, judge(detector)).results == whole.results
    assert detector.seen == 4 and path.read_text() == expected


def test_an_image_or_a_prompt_that_has_changed_is_scored_anew_and_a_moved_folder_is_not(folder, tmp_path_factory):
    evaluate_folder(folder, folder / "r.jsonl", judge(BrightnessDetector()))
    write_sample(folder, 0, 1, image(255))
    prompt = {"tag": "counting", "include": [{"class": "one", "count": 2}], "prompt": "counting one"}
    (folder / "00001" / "metadata.jsonl").write_text(str(prompt).replace("'", '"'))
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "images")
    detector = BrightnessDetector()
    evaluation = evaluate_folder(moved, moved / "r.jsonl", judge(detector))
    assert detector.seen == 3
    assert [r.correct for r in evaluation.results] == [True, True, False, False, False, False]
    assert all(str(moved) in r.filename for r in evaluation.results)


@pytest.mark.parametrize(("name", "options"), [("another", {}), ("brightness", {"threshold": 0.5})])
def test_results_of_another_detector_or_other_options_are_not_mixed(folder, name, options):
    evaluate_folder(folder, folder / "r.jsonl", judge(BrightnessDetector()))
    before = (folder / "r.jsonl").read_text()
    with pytest.raises(
        FileError, match=r"r.jsonl: it holds results of another detector or other options \(brightness;"
    ):
        evaluate_folder(folder, folder / "r.jsonl", judge(BrightnessDetector(name), **options))
    assert (folder / "r.jsonl").read_text() == before


def test_an_unreadable_and_a_missing_image_are_named_and_the_others_scored(folder):
    (folder / "00000" / "samples" / "0000.png").write_bytes(b"\x89PNG\r\n")
    (folder / "00002" / "samples" / "0001.png").unlink()
    evaluation = evaluate_folder(folder, folder / "r.jsonl", judge(BrightnessDetector()), batch_size=1)
    assert len(evaluation.results) == 4 == len(read_results(folder / "r.jsonl"))
    assert [e.path for e in evaluation.unreadable] == [folder / "00000" / "samples" / "0000.png"]
    assert evaluation.missing == [folder / "00002" / "samples" / "0001.png"]
    write_sample(folder, 0, 0, image(200))
    detector = BrightnessDetector()
    assert len(evaluate_folder(folder, folder / "r.jsonl", judge(detector)).results) == 5 and detector.seen == 1
