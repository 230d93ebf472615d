"""Scenes: real MNIST digits, coloured and placed on a black canvas, captioned in GenEval's grammar.

Every digit stands in the middle of one of four cells, which its caption decides. So a small tokenizer meets strokes at
few offsets from its patches, and a small generator need not learn where else a digit could stand.

A request is what a caption asks for, one line of a GenEval prompt file: "a photo of two green sevens", "a photo of a
red three left of a blue nine". A scene is a request, the objects that fulfil it, and where they stand. The six tasks
and the form of their clauses are those of GenEval's `create_prompts.py`; counting and position name colors in half of
the cases. The digits of every split are its own, so nothing that learned from one split has seen a digit of another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vapi_core.data.sources import MNIST_SIZE, ImageSource, mnist_source
from vapi_core.data.subset import SubsetPlan
from vapi_core.errors import ParameterError
from vapi_core.randomness import stream
from vapi_core.scoring.geneval.rules import RELATIONS, TASKS

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = (*(f"{name}s" for name in DIGITS[:6]), "sixes", "sevens", "eights", "nines")
NUMBERS = {2: "two", 3: "three", 4: "four"}
PALETTE = {  # four of GenEval's ten: a code of the tokenizer is a shape in a color, so that codes are few for each
    "red": (255, 40, 40),
    "yellow": (255, 225, 0),
    "green": (40, 215, 60),
    "blue": (60, 90, 255),
}
SMALLEST_CANVAS = 32  # pixels
CELLS = 2  # of a side of the canvas; no request has more objects than there are cells
GAP = 3  # empty pixels between two digits, at least
SIZES = 2  # how many lengths the longer side of a digit's ink may have, the largest that leaves the gap among them
NAMED_COLORS = 0.5  # how often counting and position name colors


@dataclass(frozen=True)
class SceneObject:
    """One digit of a scene."""

    digit: int
    color: str
    row: int  # of the MNIST file
    box: tuple[int, int, int, int]  # x, y, width, height in pixels

    def annotation(self) -> dict[str, Any]:
        return {"class": DIGITS[self.digit], "color": self.color, "box": list(self.box), "mnist": self.row}


def with_article(text: str) -> str:
    return f"{'an' if text.startswith('eight') else 'a'} {text}"  # "one" sounds like a consonant; no color has a vowel


def request(task: str, random: np.random.Generator) -> dict[str, Any]:
    """A random request of a task: `tag`, `include`, `exclude` and `prompt`, as a GenEval prompt file has them."""
    first, second = (DIGITS[i] for i in random.permutation(len(DIGITS))[:2])
    color, other = (list(PALETTE)[i] for i in random.permutation(len(PALETTE))[:2])
    named = random.random() < NAMED_COLORS
    number = int(random.integers(min(NUMBERS), max(NUMBERS) + 1))
    relation = RELATIONS[random.integers(len(RELATIONS))]
    if task == "single_object":
        return _metadata(task, [{"class": first, "count": 1}])
    if task == "two_object":
        return _metadata(task, [{"class": first, "count": 1}, {"class": second, "count": 1}])
    if task == "counting":
        clause = {"class": first, "count": number} | ({"color": color} if named else {})
        return _metadata(task, [clause], [{"class": first, "count": number + 1}])
    if task == "colors":
        return _metadata(task, [{"class": first, "count": 1, "color": color}])
    colored = [{"class": first, "count": 1, "color": color}, {"class": second, "count": 1, "color": other}]
    if task == "color_attr":
        return _metadata(task, colored)
    assert task == "position", task
    clauses = colored if named else [{"class": first, "count": 1}, {"class": second, "count": 1}]
    return _metadata(task, [clauses[0], clauses[1] | {"position": [relation, 0]}])


def _metadata(task: str, include: list[dict[str, Any]], exclude: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    excluded = {"exclude": list(exclude)} if exclude else {}
    return {"tag": task, "include": include, **excluded, "prompt": caption(include)}


def caption(include: Sequence[Mapping[str, Any]]) -> str:
    """The sentence that asks for these clauses."""

    def noun(clause: Mapping[str, Any]) -> str:
        color = f"{clause['color']} " if "color" in clause else ""
        if clause["count"] > 1:
            return f"{NUMBERS[clause['count']]} {color}{PLURALS[DIGITS.index(clause['class'])]}"
        return with_article(color + clause["class"])

    if "position" in include[-1]:
        return f"a photo of {noun(include[1])} {include[1]['position'][0]} {noun(include[0])}"
    return "a photo of " + " and ".join(map(noun, include))


def scene_prompts(per_task: int, seed: int) -> list[dict[str, Any]]:
    """Different requests to score by, at most `per_task` of each task; the task single_object has ten in all."""
    prompts: list[dict[str, Any]] = []
    for number, task in enumerate(TASKS):
        random = stream(seed, "scene prompts", number)
        drawn: dict[str, dict[str, Any]] = {}
        limit = min(per_task, len(DIGITS)) if task == "single_object" else per_task
        for _ in range(1000 * limit):
            wanted = request(task, random)
            drawn.setdefault(wanted["prompt"], wanted)
            if len(drawn) == limit:
                break
        else:
            raise ParameterError("subset.prompts", f"there are no {limit} different prompts of task {task}.")
        prompts.extend(drawn.values())
    return prompts


def cells_of(count: int, relation: str | None) -> list[tuple[int, int]]:
    """Cells (column, row) of a request's objects: row by row in the order of the caption, or as the relation says.

    Where a scene's objects stand follows from its caption. Were it random, an empty cell would be the best guess for
    each, and a reward for reconstruction would teach to leave scenes empty (docs/text-to-image.md).
    """
    if relation is None:
        return [(i % CELLS, i // CELLS) for i in range(count)]
    assert count == 2
    here, there = (0, 0), (1, 0) if relation in ("left of", "right of") else (0, 1)
    # the second object is left of, right of, above or below the first
    return [there, here] if relation in ("left of", "above") else [here, there]


class DigitShapes:
    """The ink of MNIST's digits, cut to its box."""

    def __init__(self) -> None:
        source = mnist_source(MNIST_SIZE)
        self.labels = source.labels
        self.inks = [_cut(source.load(row)[:, :, 0]) for row in range(len(source.labels))]  # uint8 [h, w] each

    def size(self, row: int, side: int) -> tuple[int, int]:
        """Width and height of a digit whose longer side is made this long."""
        h, w = self.inks[row].shape
        scale = side / max(h, w)
        return max(2, round(w * scale)), max(2, round(h * scale))


def _cut(grey: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(grey.any(1)), np.flatnonzero(grey.any(0))
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def compose(
    wanted: Mapping[str, Any],
    pools: Sequence[np.ndarray],
    shapes: DigitShapes,
    canvas: int,
    random: np.random.Generator,
) -> list[SceneObject]:
    """Objects that fulfil a request, with digits of `pools` (rows of MNIST by digit). Unnamed colors are random."""
    digits, colors = [], []
    relation = None
    for clause in wanted["include"]:
        digits += [DIGITS.index(clause["class"])] * clause["count"]
        drawn = [list(PALETTE)[i] for i in random.integers(len(PALETTE), size=clause["count"])]
        colors += [clause.get("color", color) for color in drawn]
        relation = clause.get("position", [relation])[0]
    cell = canvas // CELLS
    objects = []
    for digit, color, (column, row) in zip(digits, colors, cells_of(len(digits), relation), strict=True):
        shape = int(random.choice(pools[digit]))
        side = cell - GAP - int(random.integers(SIZES))
        width, height = shapes.size(shape, side)
        corner = (column * cell + (cell - width) // 2, row * cell + (cell - height) // 2)
        objects.append(SceneObject(digit, color, shape, (*corner, width, height)))
    return objects


def render(objects: Sequence[SceneObject], shapes: DigitShapes, canvas: int) -> np.ndarray:
    """The picture, uint8 [S, S, 3]."""
    picture = np.zeros((canvas, canvas, 3), np.uint8)
    for thing in objects:
        x, y, width, height = thing.box
        ink = Image.fromarray(shapes.inks[thing.row]).resize((width, height), Image.Resampling.BOX)
        tinted = np.asarray(ink)[:, :, None] * (np.array(PALETTE[thing.color]) / 255)
        picture[y : y + height, x : x + width] = tinted.round().astype(np.uint8)
    return picture


def digit_pools(labels: np.ndarray, splits: Mapping[str, int], seed: int) -> dict[str, list[np.ndarray]]:
    """Each split's digits: rows by digit, disjoint between splits, in proportion to the splits' scenes.

    Raises:
        ParameterError: a split would be left without some digit.
    """
    bounds = np.cumsum([0, *splits.values()]) / sum(splits.values())
    pools: dict[str, list[np.ndarray]] = {name: [] for name in splits}
    for digit in range(len(DIGITS)):
        rows = stream(seed, "scene digits", digit).permutation(np.flatnonzero(labels == digit))
        cuts = np.round(bounds * len(rows)).astype(int)
        for name, start, stop in zip(splits, cuts, cuts[1:], strict=False):
            if start == stop:
                problem = f"{splits[name]} of {sum(splits.values())} scenes leave it none of MNIST's {DIGITS[digit]}s."
                raise ParameterError(f"subset.splits.{name}", problem)
            pools[name].append(rows[start:stop])
    return pools


def plan_scenes(splits: Mapping[str, int], canvas: int, seed: int) -> tuple[ImageSource, SubsetPlan]:
    """Scenes of every split, tasks in turn, as a source whose images are drawn when loaded, and where each goes.

    Scene i of a split depends on its digits, the seed and i only.

    Raises:
        ParameterError: a canvas too small for four digits, or more splits than there are digits for.
    """
    if canvas < SMALLEST_CANVAS:
        raise ParameterError("subset.image_size", f"a scene needs {SMALLEST_CANVAS} pixels of a side, not {canvas}.")
    shapes = DigitShapes()
    pools = digit_pools(shapes.labels, splits, seed)
    scenes: list[tuple[str, dict[str, Any], list[SceneObject]]] = []
    chosen: dict[str, list[int]] = {}
    for number, (name, count) in enumerate(splits.items()):
        chosen[name] = list(range(len(scenes), len(scenes) + count))
        for i in range(count):
            random = stream(seed, "scene", number, i)
            wanted = request(TASKS[i % len(TASKS)], random)
            scenes.append((f"{name}/{i:05d}", wanted, compose(wanted, pools[name], shapes, canvas, random)))
    source = ImageSource(
        name="scenes",
        image_size=canvas,
        classes=TASKS,
        ids=tuple(key for key, _, _ in scenes),
        labels=np.array([TASKS.index(wanted["tag"]) for _, wanted, _ in scenes], dtype=np.int64),
        load=lambda index: render(scenes[index][2], shapes, canvas),
        captions=tuple(wanted["prompt"] for _, wanted, _ in scenes),
        annotations=tuple(
            {"request": wanted, "objects": [thing.annotation() for thing in objects]} for _, wanted, objects in scenes
        ),
    )
    return source, SubsetPlan(seed, chosen, [[] for _ in TASKS])
