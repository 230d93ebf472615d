"""The detector of scenes (`vapi_core.scenes.source`): segmentation, a digit classifier and a color rule.

It takes the place that Mask2Former and CLIP have for photographs, behind the same rules of GenEval. Segments are
connected areas of bright pixels (scikit-image); each is cut out, brought to one size and given to the classifier, whose
probability is the score of the box. The color is the one that most of an object's bright pixels are nearest to. How
often all of this is right is measured on scenes of held-out digits, whose content is known: below `NEEDED_ACCURACY`
nothing is scored by it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vapi_core.data.images import to_tensor
from vapi_core.errors import FileError
from vapi_core.models.classifier import Classifier
from vapi_core.models.weights import weights_sha256
from vapi_core.scenes.source import DIGITS, PALETTE
from vapi_core.scoring.geneval.detectors import mask_box
from vapi_core.scoring.geneval.folder import Prompt
from vapi_core.scoring.geneval.rules import Detections, FoundObject, GenEvalOptions, decide, filter_detections
from vapi_core.scoring.geneval.run import Judge

FOREGROUND = 64  # of 255: brighter pixels belong to a digit
SMALLEST = 6  # pixels of a segment
DIGIT_SIDE, CROP_SIDE = 20, 28  # of a digit's ink and of the classifier's input, as in MNIST
NEEDED_ACCURACY = 0.97
BATCH = 512
OPTIONS = GenEvalOptions(counting_threshold=0.5, bgcolor="#000")


def segments(image: np.ndarray) -> list[np.ndarray]:
    """Masks, bool [H, W] each, of the bright areas of an image, uint8 [H, W, 3]; two dark pixels do not part one."""
    from skimage.measure import label
    from skimage.morphology import dilation, footprint_rectangle

    bright = image.max(-1) > FOREGROUND
    labels, count = label(dilation(bright, footprint_rectangle((3, 3))), connectivity=2, return_num=True)
    masks = [(labels == i) & bright for i in range(1, count + 1)]
    return [mask for mask in masks if mask.sum() >= SMALLEST]


def digit_crop(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """One segment without its color, its longer side `DIGIT_SIDE` pixels, centred: uint8 [28, 28, 3]."""
    x1, y1, x2, y2 = mask_box(mask)
    grey = (image.max(-1) * mask)[y1:y2, x1:x2]
    scale = DIGIT_SIDE / max(grey.shape)
    width, height = (max(1, round(side * scale)) for side in (x2 - x1, y2 - y1))
    ink = np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR))
    crop = np.zeros((CROP_SIDE, CROP_SIDE), np.uint8)
    left, top = (CROP_SIDE - width) // 2, (CROP_SIDE - height) // 2
    crop[top : top + height, left : left + width] = ink
    return np.repeat(crop[:, :, None], 3, axis=2)


def color_of(pixels: np.ndarray) -> str:
    """The color that most of some bright pixels, uint8 [N, 3], are nearest to, brightness aside."""
    palette = np.array(list(PALETTE.values()), float)
    directions = pixels / np.maximum(pixels.max(1, keepdims=True), 1)
    distances = np.square(directions[:, None] - (palette / palette.max(1, keepdims=True))[None]).sum(-1)  # [N, colors]
    return list(PALETTE)[int(np.bincount(distances.argmin(1), minlength=len(PALETTE)).argmax())]


def scene_colors(name: str, crops: Sequence[Image.Image]) -> list[str]:
    """A color for each crop of an object over black; `name` plays no part."""
    colors = []
    for crop in crops:
        pixels = np.asarray(crop).reshape(-1, 3)
        colors.append(color_of(pixels[pixels.max(1) > FOREGROUND]))
    return colors


class SceneDetector:
    """Finds digits. `classifier` takes crops, [N, 3, 28, 28] in [-1, 1], and knows the ten of `DIGITS`."""

    def __init__(self, classifier: Classifier):
        self.classifier = classifier
        self.name = f"scenes ({weights_sha256(classifier)[:12]})"

    def detect(self, images: Sequence[Image.Image], minimum_score: float) -> list[Detections]:
        """What is in each image, with masks; one class for each segment, left out below `minimum_score`."""
        arrays = [np.asarray(image) for image in images]
        masks = [segments(array) for array in arrays]
        crops = [digit_crop(array, mask) for array, found in zip(arrays, masks, strict=True) for mask in found]
        scores, digits = self._classify(crops)
        detections, start = [], 0
        for found in masks:
            boxes: dict[str, list[np.ndarray]] = {}
            kept: dict[str, list[np.ndarray]] = {}
            for i, mask in enumerate(found, start):
                if scores[i] > minimum_score:
                    name = DIGITS[digits[i]]
                    boxes.setdefault(name, []).append(np.array([*mask_box(mask), scores[i]], np.float32))
                    kept.setdefault(name, []).append(mask)
            start += len(found)
            detections.append(
                Detections({n: np.stack(b) for n, b in boxes.items()}, {n: np.stack(m) for n, m in kept.items()})
            )
        return detections

    @torch.inference_mode()
    def _classify(self, crops: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Probability and number of the likeliest digit of each crop."""
        device = next(self.classifier.parameters()).device
        parts = [
            self.classifier(to_tensor(np.stack(crops[i : i + BATCH]), device))[1].softmax(-1).cpu()
            for i in range(0, len(crops), BATCH)
        ]
        if not parts:
            return np.zeros(0), np.zeros(0, dtype=np.int64)
        scores, digits = torch.cat(parts).max(-1)
        return scores.numpy(), digits.numpy()


def scene_judge(classifier: Classifier) -> Judge:
    """All that decides over a scene."""
    return Judge(SceneDetector(classifier), scene_colors, "nearest of the palette", DIGITS, OPTIONS)


def annotated_crops(images: np.ndarray, annotations: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray, int]:
    """What the classifier learns from: crops uint8 [M, 28, 28, 3] and digits int64 [M] of scenes whose content is
    known.

    Returns:
        also the number of segments that are not one whole digit: these are left out.
    """
    crops, digits, others = [], [], 0
    for image, annotation in zip(images, annotations, strict=True):
        for mask in segments(image):
            x1, y1, x2, y2 = mask_box(mask)
            matches = [
                thing
                for thing in annotation["objects"]
                if max(np.abs(np.array([x1, y1, x2 - x1, y2 - y1]) - np.array(thing["box"]))) <= 2
            ]
            if len(matches) == 1:
                crops.append(digit_crop(image, mask))
                digits.append(DIGITS.index(matches[0]["class"]))
            else:
                others += 1
    return np.stack(crops), np.array(digits, dtype=np.int64), others


def known_detections(annotation: Mapping[str, Any]) -> Detections:
    """What a detector without error would find in a scene whose content is known."""
    boxes: dict[str, list[np.ndarray]] = {}
    for thing in annotation["objects"]:
        x, y, width, height = thing["box"]
        boxes.setdefault(thing["class"], []).append(np.array([x, y, x + width, y + height, 1], np.float32))
    return Detections({name: np.stack(rows) for name, rows in boxes.items()})


def truth(annotation: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a scene does what a request asks for, by the same rules but without looking."""
    colors = {tuple(thing["box"]): thing["color"] for thing in annotation["objects"]}

    def color(name: str, objects: Sequence[FoundObject]) -> list[str]:
        boxes = [[round(float(side)) for side in thing.box[:4]] for thing in objects]
        return [colors[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes]

    found = filter_detections(known_detections(annotation), DIGITS, wanted["tag"], OPTIONS)
    return decide(found, wanted, color, OPTIONS).correct


@dataclass(frozen=True)
class DetectorAccuracy:
    """How often the decision over reference scenes is right, as shares."""

    fulfilled: float  # of the scenes judged by their own request
    foreign: float  # of the scenes judged by the request of another scene, which few of them fulfil
    tasks: dict[str, float]  # as `fulfilled`, of each task
    scenes: int

    @property
    def decisions(self) -> float:
        """Of all decisions."""
        return (self.fulfilled + self.foreign) / 2


def detector_accuracy(
    judge: Judge, images: np.ndarray, annotations: Sequence[Mapping[str, Any]], batch_size: int = BATCH
) -> DetectorAccuracy:
    """Judges reference scenes, uint8 [N, S, S, 3], by their own request and by that of the task's next scene."""
    requests = [annotation["request"] for annotation in annotations]
    members: dict[str, list[int]] = {}
    for i, wanted in enumerate(requests):
        members.setdefault(wanted["tag"], []).append(i)
    foreign = {i: requests[j] for scenes in members.values() for i, j in zip(scenes, np.roll(scenes, -1), strict=True)}
    right: dict[str, list[bool]] = {"own": [], "foreign": []}
    for start in range(0, len(images), batch_size):
        batch = range(start, min(start + batch_size, len(images)))
        pictures = [Image.fromarray(images[i]) for i in batch]
        for kind, wanted in (("own", [requests[i] for i in batch]), ("foreign", [foreign[i] for i in batch])):
            decisions = judge.decide([Prompt(metadata) for metadata in wanted], pictures)
            right[kind] += [
                decision.correct == truth(annotations[i], metadata)
                for i, metadata, (decision, _) in zip(batch, wanted, decisions, strict=True)
            ]
    own = np.array(right["own"])
    tasks = {task: float(own[scenes].mean()) for task, scenes in members.items()}
    return DetectorAccuracy(float(own.mean()), float(np.mean(right["foreign"])), tasks, len(images))


def require_accuracy(accuracy: DetectorAccuracy, weights: Path | str) -> None:
    """Refuses a detector that is wrong too often for its scores to mean anything.

    Raises:
        FileError: fewer than `NEEDED_ACCURACY` of its decisions are right.
    """
    if accuracy.decisions < NEEDED_ACCURACY:
        raise FileError(
            weights,
            f"the detector of scenes decides rightly over {accuracy.decisions:.1%} of {accuracy.scenes} reference scenes "
            f"only; scores mean nothing below {NEEDED_ACCURACY:.0%}.",
            "Train its classifier longer or on more images (classifiers.scorer, subset.splits), or make scenes larger.",
        )
