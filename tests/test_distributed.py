"""More processes, or another cut into micro-batches, change nothing but rounding: real processes on gloo."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.processes import run_on
from tests.tiny import random_tokens, tiny_generator, tiny_tokenizer
from vapi_core import distributed
from vapi_core.alignment.ar_grpo import ArGrpo, ArGrpoConfig
from vapi_core.alignment.reward import ReconstructionReward, RewardWeights
from vapi_core.alignment.straight_through import StraightThrough, StraightThroughConfig
from vapi_core.alignment.tokenizer_post_training import TokenizerPostTraining
from vapi_core.alignment.va_pi import VaPi, VaPiConfig
from vapi_core.data.batches import AlignmentData
from vapi_core.data.cache import TokenCache, write_token_cache
from vapi_core.data.images import to_uint8
from vapi_core.errors import TrainingError
from vapi_core.models.checkpoints import load_model, save_model
from vapi_core.models.llamagen.generator import Generator
from vapi_core.training import budget
from vapi_core.training.loop import OptimizationConfig, autocast, train

CPU = torch.device("cpu")
COUNT = 12
MSE = RewardWeights(perceptual=0.0)
VA_PI = VaPiConfig(group_size=4, noise_ratio=0.25, regularizer="kl", reward=MSE)
STEPS = OptimizationConfig(learning_rate=1e-3, steps=5, batch_size=8, schedule="linear", checkpoint_every=2)


class Bright:
    name = "bright"

    def __call__(self, images: torch.Tensor, items: np.ndarray) -> torch.Tensor:
        return images.mean((1, 2, 3))


class Killed(Exception):
    pass


class Recording(VaPi):
    """Keeps the tokens of its rollouts, by step: [B, G, T] of one process."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.rollouts: list[np.ndarray] = []

    def _roll_out(self, logits, batch):
        tokens = super()._roll_out(logits, batch)
        self.rollouts.append(tokens.numpy())
        return tokens


class Replaying(VaPi):
    """Rolls out the tokens that it is given, whatever its own logits say."""

    def __init__(self, rollouts: list[np.ndarray], *arguments):
        super().__init__(*arguments)
        self.rollouts = rollouts

    def _roll_out(self, logits, batch):
        return torch.from_numpy(self.rollouts[batch.step][list(batch.positions)])


def align(
    config: OptimizationConfig = STEPS,
    method: str = "va-pi",
    *,
    sharded: bool = False,
    dtype: torch.dtype = torch.float32,
    recompute: bool = False,
    compiled: bool = False,
    kill_after: int | None = None,
    checkpoint: Path | None = None,
    va_pi: Callable[..., VaPi] = VaPi,
) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """Metrics of every step, and how far the weights moved, of an alignment by all processes of the group."""
    tokenizer, tokens = tiny_tokenizer(), random_tokens(COUNT, 16)
    with torch.no_grad():
        images = to_uint8(tokenizer.decode(tokens))
    data = AlignmentData(tokens.numpy().astype(np.uint16), np.arange(COUNT) % 5, images, CPU)
    generator, base = tiny_generator(grid=4), tiny_generator(seed=1, grid=4).requires_grad_(False)
    generator.activation_checkpointing = recompute
    if sharded:
        for part in (generator, base):
            distributed.shard_weights(part, CPU, dtype)
    if compiled:
        generator.compile(backend="aot_eager")  # traced with its backward; a C++ compiler takes minutes
    objective = {
        "va-pi": lambda: va_pi(generator, ReconstructionReward(tokenizer, MSE), data, VA_PI, 0, base),
        "va-pi-per-token": lambda: va_pi(
            generator, ReconstructionReward(tokenizer, MSE), data, replace(VA_PI, credit="token-3x3"), 0, base
        ),
        "ste": lambda: StraightThrough(generator, tokenizer, data, StraightThroughConfig(reward=MSE), 0),
        "tokenizer": lambda: TokenizerPostTraining(tokenizer, generator, data, MSE, 0),
        "ar-grpo": lambda: ArGrpo(
            generator, tokenizer, [(1.0, Bright())], data, ArGrpoConfig(group_size=4, guidance_scale=1.5), 0, base
        ),
    }[method]()
    trained = tokenizer if method == "tokenizer" else generator
    before = {name: tensor.clone() for name, tensor in distributed.whole_state_dict(trained).items()}
    rows: list[dict[str, float]] = []

    def log(step: int, row: dict[str, float]) -> None:
        rows.append(row)
        if step == kill_after:
            raise Killed

    try:
        train(
            trained,
            autocast(objective, CPU, dtype),
            config,
            count=COUNT,
            seed=0,
            log=log,
            checkpoint=checkpoint,
            fingerprint="a",
        )
    except Killed:
        return rows, {}
    after = distributed.whole_state_dict(trained)
    return rows, {name: (after[name] - tensor).float().numpy() for name, tensor in before.items()}


@cache
def on_one_process(method: str = "va-pi"):
    return align(method=method)


def assert_same(result, expected, metrics: float = 1e-5, moves: float = 1e-3) -> None:
    """Trajectories of all metrics, loss and gradient norm among them, and the way of every tensor of weights."""
    (rows, moved), (expected_rows, expected_moved) = result, expected
    assert len(rows) == len(expected_rows)
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(expected_row, rel=metrics, abs=metrics / 10)
    assert moved.keys() == expected_moved.keys()
    for name, way in expected_moved.items():
        if not name.endswith("bias"):  # before a norm its gradient is nothing but rounding, which AdamW blows up
            assert np.linalg.norm(moved[name] - way) <= moves * np.linalg.norm(way), name


def cuts(sizes: tuple) -> list:
    """One alignment for each size of a micro-batch; several in one start of the processes, since they start slowly."""
    return [align(replace(STEPS, micro_batch_size=size)) for size in sizes]


@pytest.mark.parametrize(("processes", "sizes"), [(1, (1, 3)), (2, (None, 1, 3)), (4, (None, 1))])
def test_processes_and_accumulation_change_neither_trajectory_nor_weights(processes, sizes):
    for result in cuts(sizes) if processes == 1 else run_on(processes, cuts, sizes)[0]:
        assert_same(result, on_one_process())


def test_every_weight_moves_far_more_than_rounding():
    _, moved = on_one_process()
    assert all(np.abs(way).max() > 1e-3 for way in moved.values())


def methods(names: tuple, sharded: bool) -> dict:
    return {name: align(replace(STEPS, micro_batch_size=2), name, sharded=sharded) for name in names}


@pytest.mark.parametrize(
    ("sharded", "names"),
    [(False, ("va-pi-per-token", "ste", "ar-grpo", "tokenizer")), (True, ("va-pi", "va-pi-per-token", "ste"))],
)
def test_every_method_comes_to_the_same_on_two_processes(sharded, names):
    for name, result in run_on(2, methods, names, sharded)[0].items():
        assert_same(result, on_one_process(name))


def economies(rollouts: list[np.ndarray]) -> list:
    same_tokens = partial(Replaying, rollouts)
    return [
        align(sharded=True, recompute=True),
        align(dtype=torch.bfloat16, recompute=True, va_pi=same_tokens),
        align(sharded=True, dtype=torch.bfloat16, va_pi=same_tokens),
    ]


def test_recomputed_activations_are_exact_and_bfloat16_is_near():
    """In bfloat16 on float32's rollouts: of its own, a rounded logit turns one token in fifty in the first step."""
    recorders: list[Recording] = []

    def recording(*arguments):
        recorders.append(Recording(*arguments))
        return recorders[0]

    exact = align(va_pi=recording)
    recomputed, replicated, sharded = run_on(2, economies, recorders[0].rollouts)[0]
    assert_same(recomputed, exact)
    for rounded in (replicated, sharded):
        assert_same(rounded, exact, metrics=1e-2, moves=0.2)
        assert rounded[0] != exact[0]


def compiled() -> list:
    return [align(compiled=True, recompute=True), align(compiled=True, sharded=True)]


def test_a_compiled_generator_comes_to_the_same():
    for result in run_on(2, compiled)[0]:
        assert_same(result, on_one_process())


def interrupted(directory: Path) -> None:
    for name, sharded in (("ddp", False), ("fsdp", True)):
        align(sharded=sharded, checkpoint=directory / name, kill_after=3)


def resumed(directory: Path) -> list:
    return [align(checkpoint=directory / "one"), align(checkpoint=directory / "ddp", sharded=True)]


def test_an_alignment_goes_on_with_another_number_of_processes(tmp_path):
    run_on(2, interrupted, tmp_path)
    align(checkpoint=tmp_path / "one", kill_after=3)
    for result in (*(align(checkpoint=tmp_path / name) for name in ("ddp", "fsdp")), *run_on(2, resumed, tmp_path)[0]):
        assert_same(result, on_one_process())


def save_sharded(directory: Path) -> None:
    generator = tiny_generator()
    distributed.shard_weights(generator, CPU, torch.float32)
    weights = distributed.whole_state_dict(generator)
    if distributed.is_main():
        save_model(directory, "generator", generator, weights)


def test_weights_that_were_spread_are_saved_as_the_model_that_they_are(tmp_path):
    run_on(2, save_sharded, tmp_path)
    loaded, expected = load_model(tmp_path, "generator"), tiny_generator().state_dict()
    assert type(loaded) is Generator
    assert all(torch.equal(expected[name], weight) for name, weight in loaded.state_dict().items())


def stopped_by_one(sharded: bool) -> tuple[str, int]:
    """What a training says, and after how many steps, if one process has a loss that is not finite in its third."""
    rows: list[dict[str, float]] = []
    generator = tiny_generator(grid=4)
    if sharded:
        distributed.shard_weights(generator, CPU, torch.float32)
    tokens = random_tokens(COUNT, 16)

    def objective(slots):
        loss = generator(torch.from_numpy(slots.items) % 5, tokens[slots.items, :-1]).square().mean()
        return loss * (torch.nan if slots.step == 2 and distributed.rank() == 1 else 1.0), {}

    try:
        train(generator, objective, STEPS, count=COUNT, seed=0, log=lambda step, row: rows.append(row))
    except TrainingError as error:
        return str(error), len(rows)
    return "", len(rows)


@pytest.mark.parametrize("sharded", [False, True])
def test_all_processes_stop_at_a_number_that_only_one_has_seen(sharded):
    (first, first_steps), (second, second_steps) = run_on(2, stopped_by_one, sharded)
    assert first == second and first.startswith("training stopped at step 3: loss is nan")
    assert first_steps == second_steps == 2


def ruined(sharded: bool) -> str:
    generator = tiny_generator(grid=4)
    if sharded:
        distributed.shard_weights(generator, CPU, torch.float32)
    tokens = random_tokens(COUNT, 16)

    def objective(slots):
        return generator(torch.from_numpy(slots.items) % 5, tokens[slots.items, :-1]).square().mean(), {}

    settings = replace(STEPS, learning_rate=1e39, schedule="constant", steps=1)
    try:
        train(generator, objective, settings, count=COUNT, seed=0, log=lambda step, row: None)
    except TrainingError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("sharded", [False, True])
def test_all_processes_see_weights_that_the_last_step_has_ruined(sharded):
    first, second = run_on(2, ruined, sharded)
    assert first == second and first.startswith("training stopped at step 1: the largest weight is")


def steps_of_unequal_clocks() -> int:
    """Steps in a budget of ten ticks; the second process's clock is three times as fast."""
    ticks = iter(range(1, 1000))
    budget.time = SimpleNamespace(monotonic=lambda: next(ticks) * (1 + 2 * distributed.rank()))
    return len(align(replace(STEPS, budget=10.0))[0])


def test_processes_agree_on_when_a_budget_of_seconds_ends():
    steps = run_on(2, steps_of_unequal_clocks)
    assert steps[0] == steps[1] > 1


def write_all(directory: Path) -> tuple[list[int], np.ndarray]:
    """Tokens of seven images and two samples, written by all."""
    tokens = np.arange(28).reshape(7, 4)
    mine = distributed.share(tokens)
    write_token_cache(
        directory,
        [mine[:1], mine[1:]] if len(mine) > 1 else [mine],
        np.arange(7),
        {"train": (0, 7)},
        grid=2,
        codebook_size=28,
        tokenizer_sha256="t",
        subset_sha256="s",
    )
    return list(distributed.share(range(7))), np.asarray(TokenCache.open(directory, tokenizer_sha256="t").tokens)


def test_processes_write_one_token_cache_together(tmp_path):
    alone = write_all(tmp_path / "alone")[1]
    together = run_on(3, write_all, tmp_path / "together")
    assert [mine for mine, _ in together] == [[0, 1], [2, 3], [4, 5, 6]]
    assert all(np.array_equal(tokens, alone) for _, tokens in together)
    for name in ("tokens.npy", "labels.npy", "manifest.json"):
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["alone", "together"]


def test_an_array_written_in_parts_has_the_bytes_of_one_saved_at_once(tmp_path):
    rows = np.arange(60, dtype=np.uint16).reshape(10, 2, 3)
    distributed.create_array(tmp_path / "parts.npy", rows.shape, np.uint16)
    for start, stop in ((7, 10), (0, 4), (4, 7)):
        distributed.write_rows(tmp_path / "parts.npy", start, rows[start:stop])
    np.save(tmp_path / "whole.npy", rows)
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
