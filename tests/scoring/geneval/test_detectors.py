"""Mask2Former and CLIP on tiny random models in the real formats, and detectors that must be refused."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.tiny_vision import save_tiny_clip, save_tiny_mask2former
from vapi_core.errors import FileError
from vapi_core.models.clip import load_clip
from vapi_core.scoring.geneval.detectors import (
    COCO_CLASSES,
    ClipColors,
    Mask2Former,
    class_problem,
    input_size,
    instances,
    mask_box,
    score_problem,
)
from vapi_core.scoring.geneval.rules import COLORS

SMALL = {"shortest": 64, "longest": 128}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_mask2former(tmp_path_factory.mktemp("detector") / "tiny")


@pytest.fixture(scope="module")
def detector(folder):
    return Mask2Former(folder, **SMALL)


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (30 + i % 2, 40, 3), np.uint8)) for i in range(9)]


def test_a_saved_model_finds_objects_of_the_official_names_with_boxes_and_masks_of_the_image(detector, images):
    (found, *_) = detector.detect(images, 0.05)
    assert set(found.boxes) == set(found.masks) and set(found.boxes) <= set(COCO_CLASSES) and found.boxes
    for name, boxes in found.boxes.items():
        assert boxes.dtype == np.float32 and found.masks[name].shape == (len(boxes), 30, 40)
        assert found.masks[name].dtype == bool
        assert ((boxes[:, 4] > 0.05) & (boxes[:, 4] <= 1)).all()
        assert [tuple(box) for box in boxes[:, :4]] == [mask_box(mask) for mask in found.masks[name]]


def test_what_is_found_does_not_depend_on_the_batch_nor_on_what_is_left_out(detector, images):
    together = detector.detect(images, 0.0)
    for image, found in zip(images, together, strict=True):
        (alone,) = detector.detect([image], 0.2)
        for name, boxes in alone.boxes.items():
            expected = found.boxes[name][found.boxes[name][:, 4] > 0.2]
            np.testing.assert_allclose(boxes, expected, atol=1e-4)
        assert sum(map(len, alone.boxes.values())) == sum((b[:, 4] > 0.2).sum() for b in found.boxes.values())


def test_the_name_tells_the_weights_and_the_input(detector, folder, tmp_path):
    assert detector.name.startswith("Mask2Former tiny (") and detector.name.endswith(") at 64-128")
    other = Mask2Former(save_tiny_mask2former(tmp_path / "tiny", certainty=39.0), **SMALL)
    assert other.name != detector.name and other.name.startswith("Mask2Former tiny (")
    assert Mask2Former(folder).name.endswith(")")


def test_the_input_is_as_large_as_both_limits_allow():
    assert input_size(512, 512) == (800, 800)
    assert input_size(100, 400) == (333, 1333)
    assert input_size(2000, 1000) == (1333, 667)


def test_the_input_is_resized_normalized_and_padded_with_zeros(detector):
    pixels = detector._input(Image.new("RGB", (40, 30), (255, 0, 0)))
    assert pixels.shape == (3, 64, 96)  # 64 x 85, padded to multiples of 32
    assert torch.allclose(pixels[:, :, :85].mean((1, 2)), torch.tensor([2.2489, -2.0357, -1.8044]), atol=1e-3)
    assert not pixels[:, :, 85:].any()


def test_an_object_has_the_class_probability_times_the_certainty_of_its_mask_and_the_box_around_it():
    logits = torch.full((2, 4), -20.0)
    logits[0, 1], logits[1, 3] = 20.0, 20.0  # the second query says "no object"
    masks = torch.full((2, 8, 8), -9.0)
    masks[0, 2:6, 4:8] = 1.0
    found = instances(logits, masks, ("a", "b", "c"), (32, 32), (32, 32), 0.3)
    assert list(found.boxes) == ["b"] and found.masks["b"].shape == (1, 32, 32)
    x1, y1, x2, y2, score = found.boxes["b"][0].tolist()
    assert (x2, y1, y2) == (32, pytest.approx(8, abs=3), pytest.approx(24, abs=3)) and x1 == pytest.approx(16, abs=3)
    big = F.interpolate(masks[:1, None], (32, 32), mode="bilinear", align_corners=False)
    assert score == pytest.approx(float(big[big > 0].sigmoid().mean()), abs=1e-5)


def test_padding_is_cut_off_before_masks_are_brought_to_the_images_size():
    logits, masks = torch.tensor([[20.0, -20.0]]), torch.full((1, 8, 16), -9.0)
    masks[0, :, 10:] = 9.0  # in the padding: the input is 32 x 40 of 32 x 64
    found = instances(logits, masks, ("a",), (32, 40), (32, 40), 0.1)
    x1, _, x2, _ = found.boxes["a"][0, :4] if found.boxes else (40, 0, 40, 0)
    assert x1 >= 36 and x2 <= 40


def test_an_empty_mask_has_no_box():
    assert mask_box(np.zeros((3, 3), bool)) == (0, 0, 0, 0)
    assert instances(torch.tensor([[9.0, 0.0]]), torch.full((1, 8, 8), -1.0), ("a",), (32, 32), (8, 8), 0.0).boxes == {}


# Detectors that are refused


def test_a_detector_that_knows_something_passes_the_check(detector, images):
    detector.check(images, 0.1)


def test_an_untrained_head_is_refused_because_its_probabilities_are_uniform(tmp_path, images):
    fresh = Mask2Former(save_tiny_mask2former(tmp_path / "fresh", certainty=1.0), **SMALL)
    with pytest.raises(FileError, match="fresh: this detector's scores are implausible: .* nearly uniform .100% of"):
        fresh.check(images[:1], 0.3)


def test_scores_that_never_change_never_reach_the_threshold_or_are_no_numbers_are_implausible():
    certain = torch.full((8, 5, 81), 0.01 / 80)
    certain[..., 80] = 0.99
    assert "the same wherever it looks" in score_problem(certain, 0.9, 0.3)
    varied = certain.clone()
    varied[:, 0, 80], varied[:, 0, 3] = 0.01, 0.98 + 0.01
    assert score_problem(varied, 0.9, 0.3) is None
    assert "nothing in 8 images scores more than 0.200; 0.3 is needed" in score_problem(varied, 0.2, 0.3)
    assert score_problem(varied[:2], 0.2, 0.3) is None  # two images may well be empty
    assert "not numbers" in score_problem(varied * torch.nan, 0.9, 0.3)


def test_a_model_of_other_classes_is_refused(tmp_path):
    pets = save_tiny_mask2former(tmp_path / "pets", labels=("cat", "dog", "axolotl"))
    with pytest.raises(FileError, match="its 3 classes are not the 80 needed: 78 are missing .*1 are unknown .axolotl"):
        Mask2Former(pets)
    assert Mask2Former(pets, classes=("axolotl", "cat", "dog")).labels == ("cat", "dog", "axolotl")


def test_nameless_labels_are_refused_and_the_spellings_of_coco_are_not():
    assert "80 are unknown (LABEL_0" in class_problem([f"LABEL_{i}" for i in range(80)], COCO_CLASSES)
    assert class_problem(COCO_CLASSES[::-1], COCO_CLASSES) is None
    assert class_problem([*COCO_CLASSES[:-1], "person"], COCO_CLASSES) is not None


def test_a_checkpoint_that_lacks_weights_is_refused_instead_of_filled_with_random_ones(tmp_path):
    path = save_tiny_mask2former(tmp_path / "tiny") / "model.safetensors"
    weights = load_file(path)
    save_file({n: t for n, t in weights.items() if not n.startswith("class_predictor")}, path, {"format": "pt"})
    with pytest.raises(FileError, match="2 weights are missing or of another shape, class_predictor"):
        Mask2Former(tmp_path / "tiny")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match="tiny: there is no Mask2Former that can be loaded"):
        Mask2Former(tmp_path / "tiny")


def test_a_model_that_is_not_there_is_named_with_what_to_do(tmp_path):
    with pytest.raises(
        FileError, match="nowhere: there is no Mask2Former .*hf download facebook/mask2former-swin-small"
    ):
        Mask2Former(tmp_path / "nowhere")
    with pytest.raises(
        FileError, match="vit_large_patch14_clip_224.openai: none of .* is in the hub cache. Run `hf downl"
    ):
        load_clip("ViT-L-14-quickgelu")


# Colors


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_clip("ViT-L-14-quickgelu", save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny-clip"))


def test_a_color_is_the_nearest_mean_of_the_three_official_sentences(clip, images):
    classifiers = []
    for color in COLORS:
        texts = [f"a photo of a {color} dog", f"a photo of a {color}-colored dog", f"a photo of a {color} object"]
        classifiers.append(F.normalize(clip.encode_texts(texts).mean(0), dim=0))
    crops = [image.resize((5 + i, 20)) for i, image in enumerate(images)] * 2  # more than one batch
    expected = (clip.encode_images(crops) @ torch.stack(classifiers).T).argmax(-1)
    colors = ClipColors(clip)
    assert colors("dog", crops) == [COLORS[i] for i in expected.tolist()]
    assert colors.name.startswith("CLIP tiny-clip (")


def test_a_clip_folder_without_weights_or_with_damaged_ones_is_refused(tmp_path):
    folder = save_tiny_clip(tmp_path / "clip")
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FileError, match="open_clip cannot load"):
        load_clip("ViT-L-14-quickgelu", folder)
    weights.unlink()
    with pytest.raises(FileError, match="open_clip cannot load"):
        load_clip("ViT-L-14-quickgelu", folder)
    with pytest.raises(FileError, match="weights of ViT-L-14-quickgelu are missing"):
        load_clip("ViT-L-14-quickgelu", tmp_path / "nowhere.pt")


def test_the_coco_names_in_the_file_are_translated(folder):
    assert "mouse" in json.loads((folder / "config.json").read_text())["label2id"]
    assert "computer mouse" in Mask2Former(folder).labels
