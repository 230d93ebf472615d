"""Contextual noise: which prefix tokens are replaced, by what, and from whose random numbers."""

import numpy as np
import pytest
import torch

from tests.reference import load_fixture, needs_reference
from vapi_core.alignment.noise import corrupt_prefix, draw_noise, noisy_prefix
from vapi_core.training.loop import MicroBatch

KERNELS = ["uniform", "uniform-except-self"]
K = 8  # codebook size


@pytest.fixture
def prefix():
    return torch.randint(K, (50, 200), generator=torch.Generator().manual_seed(0))


def corrupted(prefix: torch.Tensor, noise_ratio: float, kernel: str) -> torch.Tensor:
    uniforms, replacements = draw_noise(0, 0, range(len(prefix)), prefix.shape[1], K, kernel)
    return corrupt_prefix(prefix, noise_ratio, uniforms, replacements, K, kernel)


@needs_reference
def test_the_authors_draws_give_the_authors_noisy_prefix():
    description, tensors = load_fixture("vapi/policy_step")
    prefix = tensors["in.gt_tokens"][:, :-1]
    noisy = corrupt_prefix(
        prefix,
        description["noise_prob"],
        tensors["in.noise_uniform"],
        tensors["in.noise_replacement_ids"],
        description["config"]["vocab_size"],
    )
    assert torch.equal(noisy, tensors["in.noisy_prefix"])
    assert not torch.equal(noisy, prefix)


def test_a_token_is_replaced_where_its_number_is_below_the_ratio_and_not_at_it():
    uniforms = torch.tensor([[0.0, 0.25, 0.5, 0.75]])
    noisy = corrupt_prefix(torch.zeros(1, 4, dtype=torch.long), 0.5, uniforms, torch.tensor([[1, 2, 3, 4]]), K)
    assert noisy.tolist() == [[1, 2, 0, 0]]


def test_without_itself_a_token_moves_by_its_offset_around_the_codebook():
    offsets = torch.tensor([[7, 1, 1]])
    noisy = corrupt_prefix(torch.tensor([[0, 5, 7]]), 1.0, torch.zeros(1, 3), offsets, K, "uniform-except-self")
    assert noisy.tolist() == [[7, 6, 0]]


@pytest.mark.parametrize("kernel", KERNELS)
def test_ratio_zero_replaces_nothing_and_the_tokens_given_are_never_changed(prefix, kernel):
    before = prefix.clone()
    assert torch.equal(corrupted(prefix, 0.0, kernel), prefix)
    assert not torch.equal(corrupted(prefix, 0.5, kernel), prefix)
    assert torch.equal(prefix, before)


def test_at_ratio_one_no_token_stays_if_itself_is_excluded_and_one_in_k_if_not(prefix):
    assert (corrupted(prefix, 1.0, "uniform-except-self") != prefix).all()
    stayed = (corrupted(prefix, 1.0, "uniform") == prefix).float().mean().item()
    assert stayed == pytest.approx(1 / K, abs=0.014)  # 4 standard errors of 10,000 draws


@pytest.mark.parametrize(("kernel", "allowed"), [("uniform", K), ("uniform-except-self", K - 1)])
def test_every_allowed_code_is_equally_likely_for_every_token(prefix, kernel, allowed):
    noisy = corrupted(prefix, 1.0, kernel)
    for token in range(K):
        counts = noisy[prefix == token].bincount(minlength=K)
        if kernel == "uniform-except-self":
            assert counts[token] == 0
            counts = torch.cat([counts[:token], counts[token + 1 :]])
        expected = counts.sum().item() / allowed
        chi_squared = (counts - expected).square().sum().item() / expected
        assert chi_squared < 30  # 7 degrees of freedom exceed this once in 10,000 times


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_higher_ratio_replaces_the_tokens_of_a_lower_one_and_more(prefix, kernel):
    low, high = (corrupted(prefix, ratio, kernel) for ratio in (0.2, 0.6))
    replaced = low != prefix
    assert torch.equal(high[replaced], low[replaced])
    changed = 1.0 if kernel == "uniform-except-self" else 1 - 1 / K  # the rest draws its own code again
    assert replaced.float().mean().item() == pytest.approx(0.2 * changed, abs=0.016)  # 4 standard errors
    assert (high != prefix).float().mean().item() == pytest.approx(0.6 * changed, abs=0.02)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_position_draws_the_same_in_whatever_batch_and_order_it_is(kernel):
    whole = draw_noise(3, 5, range(6), 10, K, kernel)
    parts = [draw_noise(3, 5, positions, 10, K, kernel) for positions in ([0, 1, 2, 3], [4], [5])]
    backwards = draw_noise(3, 5, reversed(range(6)), 10, K, kernel)
    for i in (0, 1):  # uniforms, replacements
        assert torch.equal(torch.cat([part[i] for part in parts]), whole[i])
        assert torch.equal(backwards[i].flip(0), whole[i])


def test_positions_steps_and_seeds_draw_other_numbers():
    draws = [draw_noise(seed, step, [0, 1], 10, K) for seed, step in [(0, 0), (0, 1), (1, 0)]]
    for i in (0, 1):
        assert len(torch.cat([draw[i] for draw in draws]).unique(dim=0)) == 6


@pytest.mark.parametrize(("kernel", "lowest"), [("uniform", 0), ("uniform-except-self", 1)])
def test_draws_have_the_types_and_ranges_that_the_corruption_needs(kernel, lowest):
    uniforms, replacements = draw_noise(0, 0, range(20), 100, K, kernel)
    assert uniforms.shape == replacements.shape == (20, 100)
    assert uniforms.dtype == torch.float32 and replacements.dtype == torch.int64
    assert uniforms.min() >= 0 and uniforms.max() < 1
    assert replacements.unique().tolist() == list(range(lowest, K))


def test_without_noise_a_method_sees_the_reference_tokens():
    tokens = torch.arange(20).unflatten(0, (4, 5))
    assert torch.equal(noisy_prefix(tokens, 0.0, "uniform", K, 0, MicroBatch(0, 0, np.arange(4))), tokens[:, :-1])


def test_with_noise_only_the_share_that_was_asked_for_is_replaced():
    tokens = torch.zeros(400, 17, dtype=torch.long)
    noisy = noisy_prefix(tokens, 0.25, "uniform-except-self", K, 0, MicroBatch(0, 0, np.arange(400)))
    assert noisy.shape == (400, 16)
    assert 0.22 < (noisy != 0).float().mean().item() < 0.28
    assert noisy.min() >= 0 and noisy.max() < K


def test_two_methods_of_a_seed_see_the_same_noise_in_whatever_micro_batches():
    tokens = torch.arange(80).unflatten(0, (8, 10)) % K
    whole = noisy_prefix(tokens, 0.5, "uniform", K, 3, MicroBatch(7, 0, np.arange(8)))
    parts = [
        noisy_prefix(tokens[start : start + 4], 0.5, "uniform", K, 3, MicroBatch(7, start, np.arange(4)))
        for start in (0, 4)
    ]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, noisy_prefix(tokens, 0.5, "uniform", K, 4, MicroBatch(7, 0, np.arange(8))))
