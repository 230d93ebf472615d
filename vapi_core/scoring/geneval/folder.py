"""GenEval's files: prompts, folders of images, results; each side can be swapped for the official script's.

A folder holds `00000/metadata.jsonl` (one prompt) and `00000/samples/0000.png`, ... for every prompt. `results.jsonl`
has the official fields, which the official `summary_scores.py` reads, and two of ours: which detector and options
decided, and the sha256 of the image, so that an image that was made anew is scored anew.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vapi_core.errors import FileError, quoted
from vapi_core.files import atomic_path, parse_json, read_text, split_lines
from vapi_core.scoring.geneval.rules import COLORS, RELATIONS, TASKS, FoundObjects

PROMPT_FILE = "metadata.jsonl"
MOST_SAMPLES = 10**6  # of a prompt
LISTED = 5  # problems that one message tells in full


@dataclass(frozen=True)
class Prompt:
    """One line of a prompt file, as it is there."""

    metadata: Mapping[str, Any]

    @property
    def text(self) -> str:
        return self.metadata["prompt"]

    @property
    def task(self) -> str:
        return self.metadata["tag"]


@dataclass(frozen=True)
class Sample:
    """One image and its prompt."""

    path: Path
    prompt: Prompt

    @property
    def place(self) -> tuple[str, ...]:
        """Prompt folder, "samples" and file name: what stays the same when the whole folder moves."""
        return self.path.parts[-3:]


@dataclass(frozen=True)
class Samples:
    """The images of a folder in order, and those that other prompts have and theirs lacks."""

    samples: list[Sample]
    missing: list[Path]


@dataclass(frozen=True)
class GenEvalResult:
    """One line of results.jsonl. `metadata` and `details` (boxes by class, with scores) are JSON within JSON."""

    filename: str
    tag: str
    prompt: str
    correct: bool
    reason: str
    metadata: str
    details: str
    detector: str | None = None  # None: written by the official script, which does not say
    image_sha256: str | None = None

    @classmethod
    def of(
        cls,
        filename: Path | str,
        prompt: Prompt,
        correct: bool,
        reason: str,
        found: FoundObjects,
        detector: str | None = None,
        image_sha256: str | None = None,
    ) -> "GenEvalResult":
        details = {name: [o.box.tolist() for o in objects] for name, objects in found.items()}
        metadata = json.dumps(prompt.metadata)
        return cls(
            str(filename),
            prompt.task,
            prompt.text,
            correct,
            reason,
            metadata,
            json.dumps(details),
            detector,
            image_sha256,
        )


def prompt_problem(metadata: Any, classes: Sequence[str], tasks: Sequence[str] = TASKS) -> str | None:
    """What is wrong with one line of a prompt file; None if nothing is."""
    if not isinstance(metadata, dict) or not isinstance(metadata.get("prompt"), str):
        return "it has no 'prompt'"
    if metadata.get("tag") not in tasks:
        return f"unknown tag {quoted(metadata.get('tag'))}; the tags are {', '.join(tasks)}"
    for kind in ("include", "exclude"):
        clauses = metadata.get(kind, [])
        if not isinstance(clauses, list) or not all(isinstance(clause, dict) for clause in clauses):
            return f"'{kind}' is not a list of clauses"
        for i, clause in enumerate(clauses):
            if problem := _clause_problem(clause, i, classes):
                return problem
    return None


def _clause_problem(clause: dict[str, Any], index: int, classes: Sequence[str]) -> str | None:
    count = clause.get("count")
    if clause.get("class") not in classes:
        return f"unknown class {quoted(clause.get('class'))}, which is none of the detector's {len(classes)}"
    if not isinstance(count, int) or count < 1:
        return f"the count {quoted(count)} of {clause['class']} is not a positive number"
    if "color" in clause and clause["color"] not in COLORS:
        return f"unknown color {quoted(clause['color'])}; the colors are {', '.join(COLORS)}"
    if "position" in clause:
        match clause["position"]:
            case [relation, int(target)] if relation in RELATIONS and 0 <= target < index:
                return None
        return f"the position {quoted(clause['position'])} is not [relation, index of an earlier clause]"
    return None


def read_prompts(path: Path | str, classes: Sequence[str], tasks: Sequence[str] = TASKS) -> list[Prompt]:
    """Prompts from a file with one JSON object a line, e.g. the official `evaluation_metadata.jsonl`.

    Raises:
        FileError: the file is missing or empty, or lines are wrong; all of them are counted, the first ones named.
    """
    prompts, problems = [], []
    for number, line in enumerate(split_lines(read_text(path)), 1):
        if line.strip():
            try:
                prompts.append(_parse_prompt(line, classes, tasks))
            except ValueError as error:
                problems.append(f"line {number}: {error}")
    if problems:
        raise FileError(path, f"{len(problems)} wrong: {_first(problems)}.", "Correct them; no prompt was used.")
    if not prompts:
        raise FileError(path, "there is no prompt in it.")
    return prompts


def _parse_prompt(text: str, classes: Sequence[str] | None, tasks: Sequence[str]) -> Prompt:
    """One prompt; without `classes` anything with a text is one. Raises ValueError."""
    try:
        metadata = parse_json(text)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if classes is not None and (problem := prompt_problem(metadata, classes, tasks)):
        raise ValueError(problem)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("prompt"), str):
        raise ValueError("it has no 'prompt'")
    return Prompt(metadata)


def prompt_directory(folder: Path | str, prompt: int) -> Path:
    return Path(folder) / f"{prompt:05}"


def sample_path(folder: Path | str, prompt: int, sample: int) -> Path:
    return prompt_directory(folder, prompt) / "samples" / f"{sample:04}.png"


def write_prompts(folder: Path | str, prompts: Iterable[Prompt]) -> None:
    """Writes every prompt into a subfolder of its own, numbered from 0.

    Raises:
        FileError: a subfolder has another prompt already, whose images might be there; nothing is written then.
    """
    texts = [json.dumps(prompt.metadata, ensure_ascii=False) for prompt in prompts]
    paths = [prompt_directory(folder, i) / PROMPT_FILE for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        if path.exists() and read_text(path).strip() != text:
            raise FileError(path, "there is another prompt already.", "Name another folder, or remove this one.")
    for path, text in zip(paths, texts, strict=True):
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def write_sample(folder: Path | str, prompt: int, sample: int, image: np.ndarray) -> Path:
    """Writes image number `sample` of prompt number `prompt`, uint8 [H, W, 3], as PNG."""
    path = sample_path(folder, prompt, sample)
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="png")
    return path


def read_folder(folder: Path | str, classes: Sequence[str] | None, tasks: Sequence[str] = TASKS) -> Samples:
    """All images of a folder and what is missing: numbers that the prompt lacks and another prompt has.

    Args:
        classes: the classes that prompts may name; None takes any prompt that has a text.

    Raises:
        FileError: no such folder, no prompt or no image in it, or prompts that are wrong, all counted.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileError(folder, "there is no such folder.")
    directories = sorted(
        (d for d in folder.iterdir() if d.is_dir() and d.name.isdigit()), key=lambda d: (int(d.name), d.name)
    )
    layout = f"A folder holds 00000/{PROMPT_FILE} and 00000/samples/0000.png for every prompt."
    prompts: list[Prompt] = []
    problems: list[str] = []
    for directory in directories:
        try:
            prompts.append(_parse_prompt(read_text(directory / PROMPT_FILE), classes, tasks))
        except (ValueError, FileError) as error:
            problems.append(f"{directory.name}/{PROMPT_FILE}: {error}")
    if problems:
        raise FileError(folder, f"{len(problems)} prompts are wrong: {_first(problems)}.", layout)
    images = [{int(p.stem): p for p in d.glob("samples/*.png") if re.fullmatch(r"\d+", p.stem)} for d in directories]
    numbers = sorted({number for found in images for number in found})
    if not numbers:
        raise FileError(folder, "there is no image in it.", layout)
    if numbers[-1] >= MOST_SAMPLES:
        raise FileError(
            folder, f"an image has the number {numbers[-1]}; they count the images of a prompt, from 0.", layout
        )
    numbers = list(range(numbers[-1] + 1))
    missing = [
        d / "samples" / f"{n:04}.png"
        for d, found in zip(directories, images, strict=True)
        for n in numbers
        if n not in found
    ]
    samples = [
        Sample(found[n], prompt) for prompt, found in zip(prompts, images, strict=True) for n in numbers if n in found
    ]
    return Samples(samples, missing)


def read_results(path: Path | str) -> list[GenEvalResult]:
    """Results of ours or of the official script. A last line that was cut off, by a kill, is left out.

    Raises:
        FileError: the file is missing, or a line is no result; it is named.
    """
    text = read_text(path)
    lines = split_lines(text)
    results = []
    for number, line in enumerate(lines, 1):
        try:
            given = parse_json(line)
            known = {f.name: given[f.name] for f in fields(GenEvalResult) if f.name in given}
            results.append(GenEvalResult(**known))
        except (ValueError, TypeError) as error:
            if number == len(lines) and not text.endswith("\n"):
                break
            raise FileError(path, f"line {number} is not a result ({error}).", "Remove the line or the file.") from None
    return results


def write_results(path: Path | str, results: Iterable[GenEvalResult]) -> None:
    """Writes a whole file of results."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(map(_line, results)), encoding="utf-8")


def append_results(path: Path | str, results: Iterable[GenEvalResult]) -> None:
    """Adds results to a file that ends with a whole line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(map(_line, results)))


def _line(result: GenEvalResult) -> str:
    return json.dumps({name: value for name, value in asdict(result).items() if value is not None}) + "\n"


def _first(problems: Sequence[Any]) -> str:
    """The first problems in full, the others as a number."""
    rest = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    return "; ".join(map(str, problems[:LISTED])) + rest
