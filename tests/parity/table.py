"""Runs the check of every fixture below a folder and prints one row for each.

A fixture is recognised by what it holds, not by its name, so that fixtures of the same formats but other names and
sizes are checked too. Its row shows the quantity that comes closest to its tolerance, or goes furthest beyond. Fixtures
that nothing here recognises, and expected tensors that no check reads, are listed, never skipped.
"""

from collections.abc import Iterator
from pathlib import Path

from tests.parity.checkpoints import check_layout, check_wrappers
from tests.parity.fixtures import NO_CHECK, Checker, Fixture, Result, find_fixtures, run_check
from tests.parity.geneval import (
    check_cases,
    check_classes,
    check_crops,
    check_primitives,
    check_prompts,
    check_summary,
    is_cases,
    is_crops,
    is_prompts,
)
from tests.parity.janus import check_janus_layout, check_renames
from tests.parity.lpips import check_lpips_layout
from tests.parity.networks import network_checker


def checker(fixture: Fixture) -> Checker | None:
    """The check for a fixture, by what it holds; none if nothing here knows it."""
    description = fixture.description
    layout = "official_model" in description and "state_dict" in description
    recognised: list[tuple[bool, Checker]] = [
        (layout, check_layout),
        ("ddp_training_checkpoint_keys" in description, check_wrappers),
        (is_cases(fixture), check_cases),
        (is_prompts(fixture), check_prompts),
        (is_crops(fixture), check_crops),
        ({"compute_iou", "relative_position"} <= description.keys(), check_primitives),
        ("official_stdout" in description, check_summary),
        (fixture.stem.name == "object_names", check_classes),
        ({"vgg_pth_tensors", "state_dict"} <= description.keys(), check_lpips_layout),
        ("gen_embed.weight" in description.get("state_dict", {}), check_janus_layout),
        ("renames" in description, check_renames),
    ]
    return next((check for holds, check in recognised if holds), None) or network_checker(fixture)


def check_fixture(root: Path, stem: Path, suffixes: list[str]) -> Result:
    """Runs the check for one fixture."""
    return run_check(root, stem, suffixes, checker)


def table(results: list[Result]) -> Iterator[str]:
    """The table, line by line."""
    lines = [("fixture", "quantity with the largest error", "error", "tolerance", "")]
    for result in results:
        if result.checks:
            worst = result.worst
            error = f"{worst.error:.2g}" if worst.tolerance else f"{worst.error:.0f}"
            tolerance = f"{worst.tolerance:.0e}" if worst.tolerance else "exact"
            lines.append((result.name, worst.quantity, error, tolerance, result.status))
        else:
            lines.append((result.name, "", "", "", NO_CHECK))
        lines += [(result.name, name, "", "", NO_CHECK) for name in result.unread]
    widths = [min(max(len(line[i]) for line in lines), 72) for i in range(5)]
    for line in lines:
        a, b, c, d, e = (" ".join(cell.split())[:72] for cell in line)
        yield f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}  {e}".rstrip()


def main(root: Path) -> int:
    """Checks all fixtures below `root` and prints the table; 1 if any fails or none is there."""
    if not root.is_dir():
        print(f"error: no folder {root}; say where the reference numbers are: make parity REFERENCE=DIR")
        return 1
    results = [check_fixture(root, stem, suffixes) for stem, suffixes in find_fixtures(root)]
    for line in table(results):
        print(line)
    for result in results:
        for check in result.checks:
            if not check.passed:
                limit = f"tolerance {check.tolerance:.0e}" if check.tolerance else "must be exact"
                print(f"FAIL {result.name}: {check.quantity}: {check.error:.2g}, {limit}")
    passed, failed, unknown = (sum(r.status == status for r in results) for status in ("pass", "FAIL", NO_CHECK))
    comparisons = sum(len(result.checks) for result in results)
    print(f"\n{passed} passed, {failed} failed, {unknown} without a check; {comparisons} comparisons")
    return 1 if failed or not passed else 0
