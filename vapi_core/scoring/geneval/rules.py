"""GenEval's decision: is what a prompt asks for in the image, given what a detector found there?

Ghosh et al. 2023 (arXiv:2310.11513); the rules are those of `evaluation/evaluate_images.py` in the official repository,
down to the wording of the reasons. Two departures, where the official result is left to chance: two relations found at
once are told in alphabetical order (the official order is that of a set), and boxes of equal score keep the reverse of
the detector's order (the official sort is unstable from 17 boxes on).

The classes are an argument: nothing here knows COCO.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from vapi_core.errors import ParameterError, quoted

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
ORIGINAL_BACKGROUND = "original"


@dataclass(frozen=True)
class GenEvalOptions:
    """The official options, with their official names and defaults.

    Raises:
        ParameterError: a value that cannot work.
    """

    threshold: float = 0.3  # a box counts if its score is larger
    counting_threshold: float = 0.9  # the same, for prompts of the task "counting"
    max_objects: int = 16  # of one class, the highest scores
    max_overlap: float = 1.0  # non-maximum suppression: boxes of this IoU with a better one go; 1 switches it off
    position_threshold: float = 0.1  # share of both boxes' size within which two objects have no relation
    bgcolor: str = "#999"  # behind the object shown to the color classifier; "original" leaves the image
    crop: bool = True  # show the color classifier the box only

    def __post_init__(self) -> None:
        for name in ("threshold", "counting_threshold", "max_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ParameterError(name, f"{getattr(self, name)} is not between 0 and 1.")
        if self.max_objects < 1:
            raise ParameterError("max_objects", "at least one object must be allowed.")
        if not self.position_threshold >= 0:
            raise ParameterError("position_threshold", f"{self.position_threshold} is negative.")
        try:
            ImageColor.getrgb("#999" if self.bgcolor == ORIGINAL_BACKGROUND else self.bgcolor)
        except ValueError:
            raise ParameterError("bgcolor", f"{quoted(self.bgcolor)} is neither a color nor 'original'.") from None

    def score_threshold(self, task: str) -> float:
        return self.counting_threshold if task == "counting" else self.threshold


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image, by class, in any order."""

    boxes: Mapping[str, np.ndarray]  # float32 [N, 5]: x1, y1, x2, y2 in pixels, score
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)  # bool [N, H, W]; a class may lack them


@dataclass(frozen=True)
class FoundObject:
    """One box that survived the filters; `index` is its place among the detector's boxes of its class."""

    index: int
    box: np.ndarray  # float32 [5]
    mask: np.ndarray | None = None  # bool [H, W]


@dataclass(frozen=True)
class Decision:
    correct: bool
    reason: str  # one line per clause that failed; empty if none did


FoundObjects = dict[str, list[FoundObject]]
ObjectColors = Callable[[str, Sequence[FoundObject]], Sequence[str]]  # class and its objects -> a color for each
CropColors = Callable[[str, Sequence[Image.Image]], Sequence[str]]  # class and crops of its objects -> the same


def intersection_over_union(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """IoU of two boxes x1, y1, x2, y2 whose ends are pixels that belong to them (so a point has area 1)."""

    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(x2 - x1 + 1, 0) * max(y2 - y1 + 1, 0)

    intersection = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(a[0], a[1], a[2], a[3]) + area(b[0], b[1], b[2], b[3]) - intersection
    return intersection / union if union else 0


def relative_position(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, threshold: float
) -> tuple[str, ...]:
    """Where box a is, seen from box b: none, one or two of RELATIONS, in alphabetical order.

    The offset of the centres is shortened, per axis, by `threshold` of both boxes' extents; what is left counts where
    it makes up more than half of the whole offset.
    """
    corners = np.array([a, b])[:, :4].reshape(2, 2, 2)  # box, corner, axis
    centers = corners.mean(axis=1)
    extents = np.abs(corners[:, 1] - corners[:, 0])
    offset = centers[0] - centers[1]
    shortened = np.maximum(np.abs(offset) - threshold * (extents[0] + extents[1]), 0) * np.sign(offset)
    if np.all(np.abs(shortened) < 1e-3):
        return ()
    dx, dy = shortened / np.linalg.norm(offset)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return tuple(sorted(relation for relation, found in holds.items() if found))


def filter_detections(
    detections: Detections, classes: Sequence[str], task: str, options: GenEvalOptions | None = None
) -> FoundObjects:
    """The boxes that count, best first, for every class of `classes` that has any, in the order of `classes`."""
    options = options or GenEvalOptions()
    found: FoundObjects = {}
    for name in classes:
        boxes = detections.boxes.get(name)
        if boxes is None or len(boxes) == 0:
            continue
        masks = detections.masks.get(name)
        order = np.argsort(boxes[:, 4], kind="stable")[::-1]
        order = order[boxes[order, 4] > options.score_threshold(task)][: options.max_objects]
        kept: list[int] = []
        for i in order.tolist():
            overlaps = (intersection_over_union(boxes[j], boxes[i]) for j in kept)
            if options.max_overlap == 1 or all(overlap < options.max_overlap for overlap in overlaps):
                kept.append(i)
        if kept:
            found[name] = [FoundObject(i, boxes[i], None if masks is None else masks[i]) for i in kept]
    return found


def object_crops(
    image: Image.Image, objects: Sequence[FoundObject], options: GenEvalOptions | None = None
) -> list[Image.Image]:
    """What the color classifier is shown of each object: its mask over a plain background, cut to its box.

    Raises:
        ParameterError: a mask of another size than the image.
    """
    options = options or GenEvalOptions()
    image = image.convert("RGB")
    original = options.bgcolor == ORIGINAL_BACKGROUND
    background = image if original else Image.new("RGB", image.size, color=options.bgcolor)
    crops = []
    for found in objects:
        shown = image
        if found.mask is not None:
            if found.mask.shape != image.size[::-1]:
                raise ParameterError("mask", f"its shape {found.mask.shape} is not the image's {image.size[::-1]}.")
            shown = Image.composite(image, background, Image.fromarray(found.mask))
        x1, y1, x2, y2 = (float(x) for x in found.box[:4])
        crops.append(shown.crop((x1, y1, x2, y2)) if options.crop else shown)  # type: ignore[arg-type]  # it rounds
    return crops


def image_colors(image: Image.Image, classify: CropColors, options: GenEvalOptions | None = None) -> ObjectColors:
    """The color of objects in `image`, by a classifier of crops."""
    return lambda name, objects: classify(name, object_crops(image, objects, options))


def decide(
    found: FoundObjects, metadata: Mapping[str, Any], colors: ObjectColors, options: GenEvalOptions | None = None
) -> Decision:
    """The official rule: every `include` clause must hold, no `exclude` clause may.

    Args:
        found: what `filter_detections` kept.
        metadata: one line of a prompt file: `include` clauses with class, count and, where asked for, color and
            position (relation, index of an earlier clause); `exclude` clauses with class and count.
        colors: asked only where a clause names a color and enough objects are there. As officially, color and
            position look at the `count` best objects only.
    """
    threshold = (options or GenEvalOptions()).position_threshold
    reasons: list[str] = []
    groups: list[list[FoundObject] | None] = []  # of each include clause: its objects, None where it failed
    for clause in metadata.get("include", []):
        objects = found.get(clause["class"], [])[: clause["count"]]
        reason = _unmet(clause, objects, groups, colors, threshold)
        groups.append(objects if reason is None else None)
        if reason is not None:
            reasons.append(reason)
    for clause in metadata.get("exclude", []):
        name, count = clause["class"], len(found.get(clause["class"], []))
        if count >= clause["count"]:
            reasons.append(f"expected {name}<{clause['count']}, found {count}")
    return Decision(not reasons, "\n".join(reasons))


def _unmet(
    clause: Mapping[str, Any],
    objects: list[FoundObject],
    groups: list[list[FoundObject] | None],
    colors: ObjectColors,
    threshold: float,
) -> str | None:
    """Why an include clause fails, in the official words; None if it holds."""
    name, count = clause["class"], clause["count"]
    if len(objects) < count:
        return f"expected {name}>={count}, found {len(objects)}"
    if "color" in clause:
        told, wanted = list(colors(name, objects)), clause["color"]
        if told.count(wanted) < count:
            all_told = ", ".join(f"{told.count(color)} {color}" for color in COLORS if color in told)
            return f"expected {wanted} {name}>={count}, found {told.count(wanted)} {wanted}; and {all_told}"
    if "position" in clause:
        relation, target = clause["position"]
        targets = groups[target]
        if targets is None:
            return f"no target for {name} to be {relation}"
        for found in objects:
            for other in targets:
                relations = relative_position(found.box, other.box, threshold)
                if relation not in relations:
                    return f"expected {name} {relation} target, found {' and '.join(relations)} target"
    return None
