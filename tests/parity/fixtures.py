"""A fixture, and how its numbers are compared.

A fixture is one or more files of the same stem: `NAME.json` describes, `NAME.safetensors` holds `weights.*`, inputs
`in.*` and what is expected, `out.*`, `grad*`, `after*`.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

NO_CHECK = "no check yet"
ABOUT = ("README.md", "MANIFEST.json")  # files about the fixtures


class Check(NamedTuple):
    """One comparison. It passes if `error <= tolerance`; exact ones count mismatches and have tolerance 0."""

    quantity: str
    error: float
    tolerance: float
    relative: float | None = None  # the largest difference in units of the largest expected value

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
        device = str(torch.get_default_device())
        self.tensors: dict[str, Tensor] = load_file(tensors_path, device) if ".safetensors" in suffixes else {}
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


def take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below `prefix`, without it: `take(t, "weights.")` is a state dict. Stored float16 becomes float32."""
    return {
        name.removeprefix(prefix): value.float() if value.dtype == torch.float16 else value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def exact(quantity: str, actual: Any, expected: Any) -> Check:
    """Counts what differs; a difference of shape counts too."""
    if isinstance(actual, Tensor):
        wrong = (actual != expected).sum().item() if actual.shape == expected.shape else math.inf
    else:
        wrong = 0 if actual == expected else 1
    return Check(quantity, float(wrong), 0.0)


def close(quantity: str, actual: Tensor | float, expected: Tensor | float, tolerance: float) -> Check:
    """Largest absolute difference."""
    a, b = _numbers(actual), _numbers(expected)
    if a.shape != b.shape:
        return Check(quantity, math.inf, tolerance)
    return Check(quantity, (a - b).abs().max().item(), tolerance, _relative(a, b))


def close_relative(quantity: str, actual: Tensor | None, expected: Tensor, tolerance: float) -> Check:
    """Largest difference in units of the largest expected value."""
    if actual is None or actual.shape != expected.shape:
        return Check(quantity, math.inf, tolerance)
    error = _relative(actual, expected)
    return Check(quantity, error, tolerance, error)


def close_mixed(quantity: str, actual: Tensor | float | None, expected: Tensor | float) -> Check:
    """Policy gradients have 1e-5 absolute plus 1e-4 relative: the largest difference in units of that."""
    label = f"{quantity} / (1e-5 + 1e-4 |x|)"
    if actual is None:
        return Check(label, math.inf, 1.0)
    a, b = _numbers(actual), _numbers(expected)
    if a.shape != b.shape:
        return Check(label, math.inf, 1.0)
    return Check(label, ((a - b).abs() / (1e-5 + 1e-4 * b.abs())).max().item(), 1.0, _relative(a, b))


def _numbers(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value).cpu().double()


def _relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def find_fixtures(root: Path) -> list[tuple[Path, list[str]]]:
    """Stems of all fixtures below `root` and the suffixes of their files."""
    stems: dict[Path, list[str]] = defaultdict(list)
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.is_file() and path.name not in ABOUT and not hidden:
            stems[path.with_suffix("")].append(path.suffix)
    return sorted(stems.items())


Checker = Callable[[Fixture], Iterator[Check]]


@dataclass(frozen=True)
class Result:
    """What came of one fixture; no checks if none is known."""

    name: str
    checks: list[Check]
    unread: list[str]

    @property
    def status(self) -> str:
        if not self.checks:
            return NO_CHECK
        return "pass" if all(check.passed for check in self.checks) else "FAIL"

    @property
    def worst(self) -> Check:
        return max(self.checks, key=lambda check: check.severity)


def run_check(root: Path, stem: Path, suffixes: list[str], checker: Callable[[Fixture], Checker | None]) -> Result:
    """Runs the check for one fixture. Whatever goes wrong in it is a failure of the fixture, not of the run."""
    name = stem.relative_to(root).as_posix()
    checks: list[Check] = []
    try:
        fixture = Fixture(root, stem, suffixes)
        check = checker(fixture)
        if check is None:
            return Result(name, [], [])
        if missing := fixture.missing():
            return Result(name, [Check(f"{len(missing)} tensors are not there, {missing[0]} first", math.inf, 0.0)], [])
        checks += check(fixture)
    except Exception as error:
        return Result(name, [*checks, Check(f"{type(error).__name__}: {error}", math.inf, 0.0)], [])
    if not checks:
        checks.append(Check("nothing to compare", math.inf, 0.0))
    return Result(name, checks, fixture.unread())
