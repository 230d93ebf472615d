import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny import NO_DROPOUT, random_tokens, tiny_generator
from vapi_core.alignment.objective import prior_loss
from vapi_core.errors import TrainingError
from vapi_core.training import (
    Objective,
    OptimizationConfig,
    adamw,
    batch_items,
    learning_rate,
    micro_batches,
    train,
)

COUNT = 20
TOKENS, CLASSES = random_tokens(COUNT, 9), torch.arange(COUNT) % 5


def config(**changes) -> OptimizationConfig:
    return OptimizationConfig(**({"learning_rate": 0.01, "steps": 6, "batch_size": 8} | changes))


def next_token(generator: nn.Module) -> Objective:
    def objective(slots):
        tokens = TOKENS[slots.items]
        loss = prior_loss(generator(CLASSES[slots.items], tokens[:, :-1]), tokens)
        return loss, {"first_position": torch.tensor(float(slots.start))}

    return objective


class Killed(Exception):
    pass


def run(
    generator: nn.Module, configuration: OptimizationConfig, kill_after: int | None = None, **options
) -> list[dict]:
    """Trains in place; returns the metrics of every step, as logged. Killed at the end of step `kill_after`."""
    rows: list[dict] = []

    def log(step, row):
        assert step == len(rows)
        rows.append(row)
        if step == kill_after:
            raise Killed

    train(generator, next_token(generator), configuration, count=COUNT, seed=0, log=log, **options)
    return rows


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# Which items a step trains on


@pytest.mark.parametrize(("batch_size", "count"), [(8, 20), (5, 20), (20, 20), (50, 20), (1, 3)])
def test_every_item_comes_once_an_epoch_before_any_comes_again(batch_size, count):
    order = np.concatenate([batch_items(0, step, batch_size, count) for step in range(4 * count // batch_size + 1)])
    for epoch in range(len(order) // count):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_shuffle_anew():
    first, second, other = (batch_items(s, e, 20, 20).tolist() for s, e in ((0, 0), (0, 1), (1, 0)))
    assert first != second and first != other and first != list(range(20))


def test_micro_batches_are_the_global_batch_cut_up():
    whole = micro_batches(0, 3, config(), COUNT)
    cut = micro_batches(0, 3, config(micro_batch_size=3), COUNT)
    assert [len(slots.items) for slots in whole] == [8] and [len(slots.items) for slots in cut] == [3, 3, 2]
    assert np.array_equal(np.concatenate([slots.items for slots in cut]), whole[0].items)
    assert [p for slots in cut for p in slots.positions] == list(whole[0].positions) == list(range(8))


# One step


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4])
def test_accumulating_small_batches_equals_one_large_batch(micro_batch_size):
    whole, parts = tiny_generator(**NO_DROPOUT), tiny_generator(**NO_DROPOUT)
    rows = run(whole, config())
    rows_of_parts = run(parts, config(micro_batch_size=micro_batch_size))
    assert torch.allclose(weights(whole), weights(parts), atol=1e-5)
    assert not torch.allclose(weights(whole), weights(tiny_generator()), atol=1e-2)
    for row, row_of_parts in zip(rows, rows_of_parts, strict=True):
        assert row_of_parts["loss"] == pytest.approx(row["loss"], abs=1e-5)
        assert row_of_parts["gradient_norm"] == pytest.approx(row["gradient_norm"], rel=1e-4)


def test_metrics_are_means_over_the_global_batch():
    rows = run(tiny_generator(), config(steps=1, micro_batch_size=6))
    assert rows[0]["first_position"] == pytest.approx((6 * 0 + 2 * 6) / 8)


def test_the_gradient_is_clipped_and_logged_as_it_was_before():
    generator = tiny_generator(**NO_DROPOUT)
    seen = []
    optimizer_step = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        seen.append(torch.cat([p.grad.flatten() for p in generator.parameters()]).norm().item())
        return optimizer_step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        rows = run(generator, config(steps=2, gradient_norm=0.01))
    assert all(row["gradient_norm"] > 0.1 for row in rows)
    assert seen == pytest.approx([0.01, 0.01], rel=1e-3)


def test_training_lowers_the_loss():
    rows = run(tiny_generator(**NO_DROPOUT), config(steps=30))
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


def test_frozen_parameters_stay_and_get_no_optimizer_state():
    generator = tiny_generator()
    generator.tok_embeddings.requires_grad_(False)
    before = generator.tok_embeddings.weight.clone()
    run(generator, config())
    assert torch.equal(generator.tok_embeddings.weight, before)
    trained = sum(
        p.numel() for group in adamw(generator.named_parameters(), config()).param_groups for p in group["params"]
    )
    assert trained == sum(p.numel() for p in generator.parameters()) - before.numel()


def test_weights_decay_but_norms_do_not():
    generator = tiny_generator()
    optimizer = adamw(generator.named_parameters(), config(weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in generator.named_parameters()}
    for p in generator.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in generator.named_parameters():
        kept = 1.0 if "norm" in name else 1 - 0.01 * 0.5
        assert torch.allclose(p, before[name] * kept), name
    assert {name for name in before if "norm" in name} >= {"norm.weight", "layers.0.ffn_norm.weight"}


# Learning rate


def rates(**changes) -> list[float]:
    configuration = config(learning_rate=1.0, steps=10, **changes)
    return [learning_rate(configuration, step) for step in range(10)]


def test_a_constant_rate_stays():
    assert rates() == [1.0] * 10


def test_a_linear_rate_falls_evenly_and_would_be_zero_after_the_last_step():
    assert rates(schedule="linear") == pytest.approx([1 - i / 10 for i in range(10)])


def test_a_cosine_rate_is_half_way_at_half_time():
    cosine = rates(schedule="cosine")
    assert cosine[0] == 1.0 and cosine[5] == pytest.approx(0.5)
    assert cosine[2] + cosine[8] == pytest.approx(1.0) and cosine == sorted(cosine, reverse=True)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_warm_up_rises_linearly_to_the_full_rate_where_the_schedule_starts(schedule):
    assert rates(schedule=schedule, warmup_steps=4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_the_rate_of_a_step_is_the_one_that_it_is_taken_with():
    rows = run(tiny_generator(), config(schedule="linear"))
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.01 * (1 - i / 6) for i in range(6)])
    warming_up = tiny_generator()
    before = weights(warming_up)
    run(warming_up, config(steps=1, warmup_steps=4, weight_decay=0.0))
    moved = (weights(warming_up) - before).abs().max().item()  # AdamW's first step is as long as the rate
    assert moved == pytest.approx(0.01 / 4, rel=0.01)


# Interruption


def interrupted(path: Path, after: int, **options) -> list[dict]:
    """Metrics of a run that is killed after a step and started again; in train mode, so with dropout."""
    settings = {"checkpoint": path, "fingerprint": "a"} | options
    with pytest.raises(Killed):
        run(tiny_generator().train(), config(checkpoint_every=2), kill_after=after, **settings)
    generator = tiny_generator(seed=9).train()  # the checkpoint, not the caller, says where it goes on
    rows = run(generator, config(checkpoint_every=2), **settings)
    return [*rows, {"weights": weights(generator)}]


@pytest.mark.parametrize("after", [2, 3, 4])
def test_an_interrupted_run_ends_exactly_like_an_uninterrupted_one(tmp_path, after):
    generator = tiny_generator().train()
    rows = run(generator, config(checkpoint_every=2))
    *resumed, last = interrupted(tmp_path / "checkpoint", after)
    assert resumed == rows
    assert torch.equal(last["weights"], weights(generator))


def test_a_run_takes_up_from_its_last_checkpoint_not_from_the_start(tmp_path):
    with pytest.raises(Killed):
        run(tiny_generator(), config(checkpoint_every=2), kill_after=4, checkpoint=tmp_path / "c", fingerprint="a")
    generator, steps = tiny_generator(), []

    def objective(slots):
        steps.append(slots.step)
        return next_token(generator)(slots)

    options = {"checkpoint": tmp_path / "c", "fingerprint": "a"}
    train(generator, objective, config(), count=COUNT, seed=0, log=lambda step, row: None, **options)
    assert steps == [4, 5]


def test_a_checkpoint_of_another_run_is_ignored(tmp_path):
    path = tmp_path / "checkpoint"
    with pytest.raises(Killed):
        run(tiny_generator(seed=5), config(checkpoint_every=2), kill_after=4, checkpoint=path, fingerprint="another")
    assert path.exists()
    with_it, without = tiny_generator(), tiny_generator()
    assert run(with_it, config(), checkpoint=path, fingerprint="a") == run(without, config())
    assert torch.equal(weights(with_it), weights(without))


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path):
    with pytest.raises(Killed):
        run(tiny_generator(), config(checkpoint_every=4), kill_after=2, checkpoint=tmp_path / "c", fingerprint="a")
    assert list(tmp_path.iterdir()) == []
    assert len(run(tiny_generator(), config(), checkpoint=tmp_path / "c", fingerprint="a")) == 6


def test_the_caller_s_random_state_does_not_matter(tmp_path):
    first, second = tiny_generator().train(), copy.deepcopy(tiny_generator()).train()
    torch.manual_seed(1)
    rows = run(first, config())
    torch.manual_seed(2)
    assert run(second, config()) == rows
    assert torch.equal(weights(first), weights(second))


# Numbers that are not finite


def broken_from(generator: nn.Module, step: int, what: str) -> Objective:
    """The objective, of which from a step on the loss, or only its gradient, is not finite."""
    plain = next_token(generator)

    def objective(slots):
        loss, metrics = plain(slots)
        if slots.step >= step:
            zero = generator.output.weight.sum() * 0
            loss = loss + (zero.sqrt() if what == "gradient_norm" else zero / 0)  # a root rises infinitely steep from 0
        return loss, metrics

    return objective


@pytest.mark.parametrize("what", ["loss", "gradient_norm"])
def test_the_first_step_that_is_not_finite_is_named_and_not_taken(tmp_path, what):
    generator, rows, kept = tiny_generator(), [], []
    options = {"log": lambda step, row: rows.append(row), "keep": kept.append, "checkpoint": tmp_path / "c"}
    with pytest.raises(TrainingError, match=f"stopped at step 4: {what} is (nan|inf)") as caught:
        objective = broken_from(generator, 3, what)
        train(generator, objective, config(checkpoint_every=2), count=COUNT, seed=0, fingerprint="a", **options)
    assert (caught.value.step, caught.value.metric) == (4, what)
    assert len(rows) == 3 and kept == [1, 2, 3]
    before = tiny_generator()
    run(before, config(steps=3))
    assert torch.equal(weights(generator), weights(before))

    mended = tiny_generator(seed=9)  # the last checkpoint is a good one
    whole, resumed = tiny_generator(), run(mended, config(), checkpoint=tmp_path / "c", fingerprint="a")
    assert run(whole, config()) == resumed and torch.equal(weights(mended), weights(whole))


def test_a_learning_rate_that_is_far_too_high_stops_cross_entropy():
    with pytest.raises(TrainingError, match="stopped at step 2: (loss|gradient_norm) is nan"):
        run(tiny_generator(), config(learning_rate=1e30))


def test_weights_that_the_last_step_has_ruined_are_not_handed_back_as_trained():
    with pytest.raises(TrainingError, match="stopped at step 1: the largest weight is (inf|nan)"):
        run(tiny_generator(), config(learning_rate=1e39, steps=1, betas=(0.0, 0.0)))


def test_looking_for_numbers_that_are_not_finite_waits_for_the_device_twice_a_step(monkeypatch):
    """As often as reading the metrics did before: loss and gradient norm, then the weights."""
    reads = []
    for name in ("cpu", "item", "tolist", "__bool__", "__float__"):
        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, n=name, r=read: (reads.append(n), r(self, *a))[1])
    run(tiny_generator(), config(steps=1))
    of_one = [name for name in reads if name in ("cpu", "item")]
    reads.clear()
    run(tiny_generator(), config(steps=2))
    assert len([name for name in reads if name in ("cpu", "item")]) - len(of_one) == 2
