"""A fixture, and how its numbers are compared.

A fixture is one or more files of the same stem: `NAME.json` describes, `NAME.safetensors` holds `weights.*`, inputs
`in.*` and what is expected, `out.*`, `grad*`, `after*`.
"""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.reference import take

ABOUT = ("README.md", "MANIFEST.json")  # files about the fixtures


class Check(NamedTuple):
    """One comparison. It passes if `error <= tolerance`; exact ones count mismatches and have tolerance 0."""

    quantity: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # false for NaN

    @property
    def severity(self) -> float:
        """Error in tolerances."""
        if self.error == 0:
            return 0.0
        return self.error / self.tolerance if self.tolerance and not math.isnan(self.error) else math.inf


class Fixture:
    """The files of one stem. It remembers which tensors were read, to tell which expected ones no check looked at."""

    def __init__(self, root: Path, stem: Path, suffixes: list[str]):
        self.root, self.stem, self.suffixes = root, stem, suffixes
        self.name = stem.relative_to(root).as_posix()
        self.description: dict[str, Any] = {}
        if ".json" in suffixes:
            content = json.loads(stem.with_name(stem.name + ".json").read_text(encoding="utf-8"))
            self.description = content if isinstance(content, dict) else {}
        tensors_path = stem.with_name(stem.name + ".safetensors")
        self.tensors: dict[str, Tensor] = load_file(tensors_path) if ".safetensors" in suffixes else {}
        self.read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return self.tensors[name]

    def weights(self, prefix: str = "weights.") -> dict[str, Tensor]:
        self.read.update(name for name in self.tensors if name.startswith(prefix))
        return take(self.tensors, prefix)

    def unread(self) -> list[str]:
        """Expected tensors that no check has read."""
        given = ("in.", "weights.", "base_weights.")
        return [name for name in self.tensors if name not in self.read and not name.startswith(given)]

    def missing(self) -> list[str]:
        """Tensors that the description lists and that are not there."""
        listed = self.description.get("tensors")
        return [name for name in listed if name not in self.tensors] if isinstance(listed, dict) else []

    def other(self, name: str) -> "Fixture":
        """The fixture called `name`, beside this one or anywhere below the root."""
        beside = self.stem.with_name(name + ".json")
        path = beside if beside.exists() else next(iter(sorted(self.root.rglob(name + ".json"))), None)
        if path is None:
            raise FileNotFoundError(f"{self.name} needs the fixture {name}")
        return Fixture(self.root, path.with_suffix(""), [".json", ".safetensors"])


def exact(quantity: str, actual: Any, expected: Any) -> Check:
    """Counts what differs; a difference of shape counts too."""
    if isinstance(actual, Tensor):
        wrong = (actual != expected).sum().item() if actual.shape == expected.shape else math.inf
    else:
        wrong = 0 if actual == expected else 1
    return Check(quantity, float(wrong), 0.0)


def close(quantity: str, actual: Tensor | float, expected: Tensor | float, tolerance: float) -> Check:
    """Largest absolute difference."""
    a, b = torch.as_tensor(actual).double(), torch.as_tensor(expected).double()
    return Check(quantity, (a - b).abs().max().item() if a.shape == b.shape else math.inf, tolerance)


def close_relative(quantity: str, actual: Tensor | None, expected: Tensor, tolerance: float) -> Check:
    """Largest difference in units of the largest expected value."""
    if actual is None or actual.shape != expected.shape:
        return Check(quantity, math.inf, tolerance)
    return Check(quantity, ((actual - expected).abs().max() / expected.abs().max()).item(), tolerance)


def close_mixed(quantity: str, actual: Tensor | float | None, expected: Tensor | float) -> Check:
    """Policy gradients have 1e-5 absolute plus 1e-4 relative: the largest difference in units of that."""
    label = f"{quantity} / (1e-5 + 1e-4 |x|)"
    if actual is None:
        return Check(label, math.inf, 1.0)
    a, b = torch.as_tensor(actual).double(), torch.as_tensor(expected).double()
    return Check(label, ((a - b).abs() / (1e-5 + 1e-4 * b.abs())).max().item() if a.shape == b.shape else math.inf, 1.0)


def find_fixtures(root: Path) -> list[tuple[Path, list[str]]]:
    """Stems of all fixtures below `root` and the suffixes of their files."""
    stems: dict[Path, list[str]] = defaultdict(list)
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.is_file() and path.name not in ABOUT and not hidden:
            stems[path.with_suffix("")].append(path.suffix)
    return sorted(stems.items())
