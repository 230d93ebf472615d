"""GenEval's rules on scenes made by hand. That they equal the official ones in 2,862 cases is a matter of parity."""

import numpy as np
import pytest
from PIL import Image

from vapi_core.errors import ParameterError
from vapi_core.scoring.geneval.rules import (
    Detections,
    FoundObject,
    GenEvalOptions,
    decide,
    filter_detections,
    image_colors,
    intersection_over_union,
    object_crops,
    relative_position,
)

DIGITS = ("zero", "one", "two")


def boxes(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 5)


def found(task: str = "position", **detected: np.ndarray):
    return filter_detections(Detections(detected), DIGITS, task)


def no_colors(name, objects):
    raise AssertionError("no color was asked for")


def test_the_classes_are_whatever_one_says_and_keep_their_order():
    detections = Detections(
        {"two": boxes([0, 0, 9, 9, 0.9]), "zero": boxes([0, 0, 9, 9, 0.8]), "cat": boxes([0] * 4 + [1])}
    )
    assert list(filter_detections(detections, DIGITS, "colors")) == ["zero", "two"]


def test_a_score_must_be_larger_than_the_threshold_which_is_higher_where_objects_are_counted():
    scores = boxes([0, 0, 9, 9, 0.9], [20, 0, 29, 9, 0.3], [40, 0, 49, 9, 0.95])
    assert [o.index for o in found("colors", one=scores)["one"]] == [2, 0]
    assert [o.index for o in found("counting", one=scores)["one"]] == [2]


def test_boxes_of_equal_score_come_in_reversed_order_however_many_there_are():
    equal = boxes(*([i, 0, i + 1, 1, 0.5] for i in range(40)))
    kept = filter_detections(Detections({"one": equal}), DIGITS, "colors", GenEvalOptions(max_objects=40))
    assert [o.index for o in kept["one"]] == list(range(39, -1, -1))


def test_overlapping_boxes_stay_unless_suppression_is_asked_for():
    twice = Detections({"one": boxes([0, 0, 9, 9, 0.5], [0, 0, 9, 10, 0.6])})
    assert len(filter_detections(twice, DIGITS, "colors")["one"]) == 2
    (best,) = filter_detections(twice, DIGITS, "colors", GenEvalOptions(max_overlap=0.5))["one"]
    assert best.index == 1


def test_a_point_is_one_pixel_and_an_inverted_box_is_nothing():
    assert intersection_over_union([0, 0, 0, 0], [0, 0, 1, 0]) == 0.5
    assert intersection_over_union([5, 5, 3, 3], [5, 5, 3, 3]) == 0


def test_position_needs_an_offset_beyond_the_objects_own_size():
    a, b = [0, 0, 10, 10], [50, 0, 60, 10]
    assert relative_position(a, b, 0.1) == ("left of",)
    assert relative_position(b, a, 0.1) == ("right of",)
    assert relative_position(a, [50, 50, 60, 60], 0.1) == ("above", "left of")
    assert relative_position(a, [50, 0, 60, 10], 3.0) == ()
    assert relative_position(a, a, 0.0) == ()


def test_position_is_told_with_what_was_found_instead():
    metadata = {
        "include": [{"class": "one", "count": 1}, {"class": "two", "count": 1, "position": ["left of", 0]}],
    }
    right = found(one=boxes([0, 0, 9, 9, 0.9]), two=boxes([50, 0, 59, 9, 0.9]))
    assert decide(right, metadata, no_colors).reason == "expected two left of target, found right of target"
    left = found(one=boxes([50, 0, 59, 9, 0.9]), two=boxes([0, 0, 9, 9, 0.9]))
    assert decide(left, metadata, no_colors).correct
    alone = decide(found(two=boxes([0, 0, 9, 9, 0.9])), metadata, no_colors)
    assert alone.reason == "expected one>=1, found 0\nno target for two to be left of"


def test_too_many_objects_break_an_exclude_clause_only():
    three = found("counting", one=boxes(*([i * 20, 0, i * 20 + 9, 9, 0.95] for i in range(3))))
    include = {"include": [{"class": "one", "count": 2}]}
    assert decide(three, include, no_colors).correct
    limited = decide(three, include | {"exclude": [{"class": "one", "count": 3}]}, no_colors)
    assert not limited.correct and limited.reason == "expected one<3, found 3"


def test_a_color_is_judged_by_a_callable_that_is_shown_crops_of_the_best_objects_only():
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 20:] = (0, 255, 0)
    shown = []

    def classify(name, crops):
        shown.extend((name, crop.size, crop.getpixel((0, 0))) for crop in crops)
        return ["green" if crop.getpixel((0, 0)) == (0, 255, 0) else "black" for crop in crops]

    objects = found("colors", one=boxes([22, 2, 30, 12, 0.9], [0, 0, 10, 10, 0.5]))
    colors = image_colors(Image.fromarray(pixels), classify)
    clause = {"class": "one", "count": 1, "color": "green"}
    assert decide(objects, {"include": [clause]}, colors).correct
    assert shown == [("one", (8, 10), (0, 255, 0))]
    both = decide(objects, {"include": [clause | {"count": 2}]}, colors)
    assert both.reason == "expected green one>=2, found 1 green; and 1 green, 1 black"


def test_a_crop_shows_the_mask_over_grey_and_nothing_of_a_mask_of_another_size():
    image = Image.new("RGB", (6, 4), "white")
    mask = np.zeros((4, 6), bool)
    mask[1, 2] = True
    (crop,) = object_crops(image, [FoundObject(0, boxes([1, 1, 4, 3, 0.9])[0], mask)])
    assert crop.size == (3, 2) and crop.getpixel((1, 0)) == (255, 255, 255) and crop.getpixel((0, 0)) == (153,) * 3
    with pytest.raises(ParameterError, match=r"its shape \(6, 4\) is not the image's \(4, 6\)"):
        object_crops(image, [FoundObject(0, boxes([1, 1, 4, 3, 0.9])[0], mask.T)])


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 1.2},
        {"max_overlap": -1},
        {"max_objects": 0},
        {"position_threshold": -0.1},
        {"bgcolor": "gray-ish"},
    ],
)
def test_an_option_that_cannot_work_is_refused_by_name(wrong):
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        GenEvalOptions(**wrong)
