"""Scenes do what their captions say, of digits that no other split has."""

import numpy as np
import pytest

from vapi_core.data.subset import Subset, write_subset
from vapi_core.errors import ParameterError
from vapi_core.scenes.detector import truth
from vapi_core.scenes.source import DIGITS, GAP, PALETTE, caption, plan_scenes, scene_prompts
from vapi_core.scenes.windows import WINDOW_CLASSES, object_windows
from vapi_core.scoring.geneval.folder import prompt_problem
from vapi_core.scoring.geneval.rules import TASKS

SPLITS = {"train": 36, "scorer": 24, "heldout": 12}


@pytest.fixture(scope="module")
def scenes():
    return plan_scenes(SPLITS, 36, seed=3)


@pytest.mark.parametrize(
    ("clauses", "sentence"),
    [
        ([{"class": "eight", "count": 1}], "a photo of an eight"),
        ([{"class": "one", "count": 1}, {"class": "six", "count": 1}], "a photo of a one and a six"),
        ([{"class": "seven", "count": 2, "color": "green"}], "a photo of two green sevens"),
        ([{"class": "six", "count": 3}], "a photo of three sixes"),
        (
            [
                {"class": "nine", "count": 1, "color": "blue"},
                {"class": "three", "count": 1, "color": "red", "position": ["left of", 0]},
            ],
            "a photo of a red three left of a blue nine",
        ),
    ],
)
def test_captions_are_in_the_grammar_of_geneval(clauses, sentence):
    assert caption(clauses) == sentence


def test_every_scene_does_what_its_request_asks_for(scenes):
    source, plan = scenes
    assert [len(plan.chosen[name]) for name in SPLITS] == list(SPLITS.values())
    for annotation, text in zip(source.annotations, source.captions, strict=True):
        assert truth(annotation, annotation["request"])
        assert annotation["request"]["prompt"] == text
        assert prompt_problem(annotation["request"], DIGITS) is None
    tasks = [annotation["request"]["tag"] for annotation in source.annotations]
    assert all(tasks.count(task) == sum(SPLITS.values()) / len(TASKS) for task in TASKS)


def test_digits_stand_apart_in_their_colors_and_nothing_else_is_in_the_picture(scenes):
    source, _ = scenes
    for index, annotation in enumerate(source.annotations):
        picture = source.load(index)
        covered = np.zeros((36, 36), int)
        for thing in annotation["objects"]:
            x, y, width, height = thing["box"]
            covered[max(0, y - GAP + 1) : y + height, max(0, x - GAP + 1) : x + width] += 1
            inside = picture[y : y + height, x : x + width].reshape(-1, 3)
            brightest = inside[inside.sum(1).argmax()].astype(int)
            scale = brightest.max() / max(PALETTE[thing["color"]])
            assert np.abs(brightest - np.array(PALETTE[thing["color"]]) * scale).max() <= 2
            picture[y : y + height, x : x + width] = 0
        assert covered.max() == 1 and not picture.any()


def test_objects_stand_in_the_order_of_the_caption_or_as_the_relation_says(scenes):
    source, _ = scenes
    row = [(0, 0), (1, 0), (0, 1), (1, 1)]
    for annotation in source.annotations:
        boxes = [thing["box"] for thing in annotation["objects"]]
        cells = [((2 * x + w) // 36, (2 * y + h) // 36) for x, y, w, h in boxes]
        relation = annotation["request"]["include"][-1].get("position", [None])[0]
        expected = {"left of": [(1, 0), (0, 0)], "above": [(0, 1), (0, 0)], "below": [(0, 0), (0, 1)]}
        assert cells == expected.get(relation, row[: len(cells)])


def test_no_digit_is_in_two_splits(scenes):
    source, plan = scenes
    rows = {
        name: {thing["mnist"] for i in chosen for thing in source.annotations[i]["objects"]}
        for name, chosen in plan.chosen.items()
    }
    assert not rows["train"] & rows["scorer"] and not rows["train"] & rows["heldout"]
    assert not rows["scorer"] & rows["heldout"]


def test_scenes_are_the_same_again_and_others_under_another_seed(scenes):
    source, _ = scenes
    again, _ = plan_scenes(SPLITS, 36, seed=3)
    other, _ = plan_scenes(SPLITS, 36, seed=4)
    assert again.captions == source.captions and again.annotations == source.annotations
    assert other.captions != source.captions


def test_captions_and_annotations_are_in_the_manifest(scenes, tmp_path):
    source, plan = scenes
    write_subset(source, plan, tmp_path / "subset")
    subset = Subset.open(tmp_path / "subset")
    assert subset.captions == source.captions
    assert list(subset.annotations) == list(source.annotations)
    images, _ = subset.split("heldout")
    np.testing.assert_array_equal(images[0], source.load(plan.chosen["heldout"][0]))


def test_windows_show_one_object_each_in_its_middle(scenes):
    source, _ = scenes
    images = np.stack([source.load(i) for i in range(6)])
    windows, labels = object_windows(images, source.annotations[:6])
    objects = [thing for annotation in source.annotations[:6] for thing in annotation["objects"]]
    assert windows.shape == (len(objects), 18, 18, 3) and labels.max() < WINDOW_CLASSES
    for window, label, thing in zip(windows, labels, objects, strict=True):
        assert DIGITS[label // len(PALETTE)] == thing["class"] and list(PALETTE)[label % len(PALETTE)] == thing["color"]
        assert window[6:12, 6:12].any()


def test_prompts_are_different_and_valid_and_single_object_has_ten():
    prompts = scene_prompts(12, seed=0)
    texts = [prompt["prompt"] for prompt in prompts]
    assert len(set(texts)) == len(texts) == 10 + 5 * 12
    assert all(prompt_problem(prompt, DIGITS) is None for prompt in prompts)


def test_more_prompts_than_there_are_is_an_error():
    with pytest.raises(ParameterError, match=r"subset.prompts: there are no 61 different prompts of task colors"):
        scene_prompts(61, seed=0)


def test_a_canvas_that_is_too_small_is_an_error():
    with pytest.raises(ParameterError, match="32 pixels"):
        plan_scenes(SPLITS, 24, seed=0)


def test_a_split_without_some_digit_is_an_error():
    with pytest.raises(ParameterError, match="leave it none of MNIST's zeros"):
        plan_scenes({"train": 10_000, "heldout": 1}, 36, seed=0)
