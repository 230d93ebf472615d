"""What the detector of scenes finds in scenes whose content is known, and when it is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from vapi_core.errors import FileError
from vapi_core.scenes.detector import (
    CROP_SIDE,
    DetectorAccuracy,
    SceneDetector,
    annotated_crops,
    color_of,
    detector_accuracy,
    digit_crop,
    require_accuracy,
    scene_judge,
    segments,
    truth,
)
from vapi_core.scenes.source import DIGITS, plan_scenes
from vapi_core.scoring.geneval.detectors import mask_box
from vapi_core.scoring.geneval.folder import Prompt


@pytest.fixture(scope="module")
def scenes():
    source, plan = plan_scenes({"train": 60, "heldout": 48}, 36, seed=5)
    rows = plan.chosen["heldout"]
    return np.stack([source.load(i) for i in rows]), [source.annotations[i] for i in rows]


class KnownCrops(torch.nn.Module):
    """A classifier that has seen all crops of some scenes: it tells each by the nearest one, so errors are not its."""

    def __init__(self, scenes):
        super().__init__()
        self.crops, self.digits, _ = annotated_crops(*scenes)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        flat = ((images[:, 0] + 1) * 127.5).flatten(1)
        nearest = torch.cdist(flat, torch.from_numpy(self.crops[:, :, :, 0]).float().flatten(1)).argmin(1)
        logits = torch.full((len(images), 10), -9.0)
        logits[torch.arange(len(images)), torch.from_numpy(self.digits)[nearest]] = 9.0
        return flat, logits


@pytest.fixture(scope="module")
def judge(scenes):
    return scene_judge(KnownCrops(scenes))


def test_segments_are_the_digits_though_strokes_break(scenes):
    image = np.zeros((20, 20, 3), np.uint8)
    image[2:6, 2:4] = image[8:12, 2:4] = (255, 0, 0)  # two dark rows between
    image[2:12, 12:14] = (0, 0, 255)
    image[16, 16] = 255  # too small
    assert [mask_box(mask) for mask in segments(image)] == [(2, 2, 4, 12), (12, 2, 14, 12)]
    images, annotations = scenes
    right = [len(segments(i)) == len(a["objects"]) for i, a in zip(images, annotations, strict=True)]
    assert np.mean(right) > 0.95


def test_a_crop_is_centred_and_of_one_size_without_color():
    image = np.zeros((36, 36, 3), np.uint8)
    image[3:13, 20:24] = (200, 0, 0)
    crop = digit_crop(image, segments(image)[0])
    assert crop.shape == (CROP_SIDE, CROP_SIDE, 3)
    assert mask_box(crop[:, :, 0] > 0) == (10, 4, 18, 24) and crop.max() == 200
    assert (crop[:, :, 0] == crop[:, :, 2]).all()


@pytest.mark.parametrize(
    ("pixels", "color"),
    [
        ([(255, 40, 40)], "red"),
        ([(90, 15, 12)], "red"),  # brightness plays no part
        ([(250, 30, 40), (255, 90, 80), (60, 90, 255)], "red"),  # most pixels decide
        ([(240, 210, 40)], "yellow"),
    ],
)
def test_the_color_is_the_one_most_pixels_are_nearest_to(pixels, color):
    assert color_of(np.array(pixels, np.uint8)) == color


def test_decisions_over_known_scenes_are_right_where_the_classifier_is(scenes, judge):
    accuracy = detector_accuracy(judge, *scenes, batch_size=20)
    assert accuracy.scenes == 48 and accuracy.fulfilled > 0.95 and accuracy.foreign > 0.95
    assert len(accuracy.tasks) == 6


def test_scenes_are_told_apart_from_what_they_are_not(scenes, judge):
    images, annotations = scenes
    for image, annotation in zip(images, annotations, strict=True):
        if annotation["request"]["tag"] == "color_attr":
            first, second = annotation["request"]["include"]
            swapped = [first | {"color": second["color"]}, second | {"color": first["color"]}]
            wanted = annotation["request"] | {"include": swapped}
            assert not truth(annotation, wanted)
            ((decision, _),) = judge.decide([Prompt(wanted)], [Image.fromarray(image)])
            assert not decision.correct


def test_nothing_is_found_in_the_dark(scenes):
    (found,) = SceneDetector(KnownCrops(scenes)).detect([Image.new("RGB", (36, 36))], 0.3)
    assert not found.boxes


def test_a_detector_that_is_wrong_too_often_is_refused():
    require_accuracy(DetectorAccuracy(0.95, 0.99, {}, 100), "weights")
    with pytest.raises(FileError, match=r"weights: the detector of scenes decides rightly over 96.5% of 100"):
        require_accuracy(DetectorAccuracy(0.94, 0.99, {}, 100), "weights")


def test_classes_are_the_ten_digits(judge):
    assert tuple(judge.classes) == DIGITS and judge.name.startswith("scenes (")
