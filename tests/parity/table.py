"""Runs the check of every fixture below a folder and prints one row for each.

A fixture is recognised by what it holds, not by its name, so that fixtures of the same formats but other names and sizes
are checked too. Its row shows the quantity that comes closest to its tolerance, or goes furthest beyond. Fixtures that
nothing here recognises, and expected tensors that no check reads, are listed, never skipped.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.parity.checkpoints import check_layout, check_wrappers
from tests.parity.fixtures import Check, Fixture, find_fixtures
from tests.parity.generator import (
    ROTARY,
    check_caption_generator,
    check_filter,
    check_generator,
    check_guidance_schedule,
    check_rotary,
)
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
from tests.parity.janus import check_janus, check_janus_layout, check_renames
from tests.parity.lpips import check_lpips_arithmetic, check_lpips_layout
from tests.parity.policy import (
    check_advantages,
    check_optimizer,
    check_policy_step,
    check_reward,
    check_sampled_log_probabilities,
)
from tests.parity.straight_through import check_straight_through
from tests.parity.tokenizer import check_quantizer, check_tokenizer

NO_CHECK = "no check yet"

Checker = Callable[[Fixture], Iterator[Check]]


def checker(fixture: Fixture) -> Checker | None:
    """The check for a fixture, by what it holds; none if nothing here knows it."""
    description = fixture.description
    tensors = {*fixture.tensors, *description.get("tensors", {})}
    config = description.get("config")
    kind = config.get("model_type", "c2i") if isinstance(config, dict) else None
    layout = "official_model" in description and "state_dict" in description
    recognised: list[tuple[bool, Checker]] = [
        (layout, check_layout),
        ("ddp_training_checkpoint_keys" in description, check_wrappers),
        ("weights_from" in description and "out.greedy_0" in tensors, check_guidance_schedule),
        ({"in.class_ids", "in.tokens", "out.tf_logits"} <= tensors and kind == "c2i", check_generator),
        ({"in.caption_embs_right_padded", "in.tokens", "out.tf_logits"} <= tensors, check_caption_generator),
        (any(ROTARY.fullmatch(name) for name in tensors), check_rotary),
        ("combos" in description and "out.probs_0" in tensors, check_filter),
        ({"in.image_0", "out.pre_quant_0", "out.train_recon"} <= tensors, check_tokenizer),
        ({"in.z", "in.embedding", "out.zq_0"} <= tensors, check_quantizer),
        ({"in.noisy_prefix", "in.old_logps", "in.rewards"} <= tensors, check_policy_step),
        (any(name.startswith("after1.") for name in tensors), check_optimizer),
        ({"in.rewards_0", "out.advantages_0"} <= tensors, check_advantages),
        ({"in.sampled_0", "out.logp_0"} <= tensors, check_sampled_log_probabilities),
        ({"in.fake_lpips", "out.rewards_l2"} <= tensors, check_reward),
        (is_cases(fixture), check_cases),
        (is_prompts(fixture), check_prompts),
        (is_crops(fixture), check_crops),
        ({"compute_iou", "relative_position"} <= description.keys(), check_primitives),
        ("official_stdout" in description, check_summary),
        (fixture.stem.name == "object_names", check_classes),
        ({"in.gumbel_noise", "out.hard_ids"} <= tensors, check_straight_through),
        ({"vgg_pth_tensors", "state_dict"} <= description.keys(), check_lpips_layout),
        ({"in.feat0_0", "in.lin0", "out.lpips"} <= tensors, check_lpips_arithmetic),
        ({"in.prompt_ids", "in.tf_image_tokens", "out.vapi_tf_logits_cfg1"} <= tensors, check_janus),
        ("gen_embed.weight" in description.get("state_dict", {}), check_janus_layout),
        ("renames" in description, check_renames),
    ]
    return next((check for holds, check in recognised if holds), None)


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


def check_fixture(root: Path, stem: Path, suffixes: list[str]) -> Result:
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
