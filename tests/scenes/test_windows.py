import numpy as np
import pytest

from vapi_core.scenes.source import DIGITS, PALETTE, plan_scenes
from vapi_core.scenes.windows import WINDOW_CLASSES, object_windows

SPLITS = {"train": 36, "scorer": 24, "heldout": 12}


@pytest.fixture(scope="module")
def scenes():
    return plan_scenes(SPLITS, 36, seed=3)


def test_windows_show_one_object_each_in_its_middle(scenes):
    source, _ = scenes
    images = np.stack([source.load(i) for i in range(6)])
    windows, labels = object_windows(images, source.annotations[:6])
    objects = [thing for annotation in source.annotations[:6] for thing in annotation["objects"]]
    assert windows.shape == (len(objects), 18, 18, 3) and labels.max() < WINDOW_CLASSES
    for window, label, thing in zip(windows, labels, objects, strict=True):
        assert DIGITS[label // len(PALETTE)] == thing["class"] and list(PALETTE)[label % len(PALETTE)] == thing["color"]
        assert window[6:12, 6:12].any()
