"""The official numbers on this device: in float32 by the fixtures' own tolerances, in bfloat16 by a coarse one.

In bfloat16 a rounded logit or code vector turns a token into another, and what follows that token is another image. So
only quantities are compared that follow no token of their own: `IN_BFLOAT16` names them.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.process import Pieces, Skipped, own_device
from benchmarks.gpu.shapes import Asked

IN_BFLOAT16 = re.compile(
    r"teacher-forced logits.*|logits|base logits|logits of (all positions|every position)|cross-entropy|training loss"
    r"|(un)?conditional logits of each step|encoder \d+|decoded (rollout|image)|reconstruction|distance"
)
TOLERANCE = 0.1  # of the largest expected value: twice the largest error of bfloat16 on a CPU


def measure(asked: Asked) -> Pieces:
    if asked.reference is None or not asked.reference.is_dir():
        where = "no --reference" if asked.reference is None else f"no folder {asked.reference}"
        raise Skipped(f"{where}: the official numbers are not here")
    try:
        from tests.parity.fixtures import Fixture, find_fixtures
        from tests.parity.networks import network_checker
    except ModuleNotFoundError as error:
        raise Skipped(f"{error}: copy the folder tests too") from None
    device = own_device()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.set_default_device(device)
    fixtures = [
        (stem, suffixes)
        for stem, suffixes in find_fixtures(asked.reference)
        if network_checker(Fixture(asked.reference, stem, suffixes)) is not None
    ]
    rows: list[dict[str, Any]] = []
    for dtype in (torch.float32, torch.bfloat16):
        for stem, suffixes in fixtures:
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                rows += check(asked.reference, stem, suffixes, dtype)
            yield {"fixtures": rows}
    if failed := sum(not row["passed"] for row in rows):
        raise RuntimeError(f"{failed} of {len(rows)} rows are beyond their tolerance")


def check(root: Path, stem: Path, suffixes: list[str], dtype: torch.dtype) -> list[dict[str, Any]]:
    """The row of a fixture: its worst quantity; none in bfloat16 where it has none that is compared."""
    from tests.parity.fixtures import Check, run_check
    from tests.parity.networks import network_checker

    result = run_check(root, stem, suffixes, network_checker)
    checks = result.checks
    if dtype == torch.bfloat16:
        named = [c for c in checks if IN_BFLOAT16.fullmatch(c.quantity) or math.isinf(c.error)]  # inf: an exception
        checks = [Check(c.quantity, c.error if c.relative is None else c.relative, TOLERANCE) for c in named]
    if not checks:
        return []
    worst = max(checks, key=lambda c: c.severity)
    return [
        {
            "fixture": result.name,
            "dtype": str(dtype).removeprefix("torch."),
            "quantity": worst.quantity,
            "error": worst.error,
            "tolerance": worst.tolerance,
            "passed": all(c.passed for c in checks),
            "compared": len(checks),
        }
    ]
