"""Values are compared with the official numbers by `tests/parity`; this is what they mean."""

import math

import pytest
import torch

from vapi_core.alignment.objective import clipped_policy_loss, group_advantages, kl_estimate
from vapi_core.models.logits import next_token_loss, token_log_probabilities

B, G, T, V = 3, 4, 5, 7


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


# Advantages


@pytest.mark.parametrize("size", [2, 3, 8, 13, 14, 15, 40])
@pytest.mark.parametrize("reward", [0.7, -0.1, -1e-3, 1 / 3, -123.456])
def test_equal_rewards_teach_nothing_at_all(size, reward):
    """The official advantages of 13, 14 or 15 rewards of 0.7 are 0.89: their float32 mean is off by a rounding unit."""
    advantages = group_advantages(torch.full((2, size), reward), clamp=5.0)
    assert torch.equal(advantages, torch.zeros(2, size))


def test_advantages_compare_a_rollout_with_its_own_group_only():
    rewards = random(B, G).float()
    advantages = group_advantages(rewards, clamp=5.0)
    assert torch.allclose(advantages.mean(1), torch.zeros(B), atol=1e-6)
    assert torch.allclose(advantages.std(1), torch.ones(B), atol=1e-6)
    shifted = rewards.clone()
    shifted[1] = 10 * shifted[1] - 300
    assert torch.allclose(group_advantages(shifted, clamp=5.0), advantages, atol=1e-4)
    assert advantages.dtype == torch.float32


def test_advantages_are_clamped_on_both_sides():
    rewards = torch.zeros(1, 40)
    rewards[0, 7] = 1.0
    assert group_advantages(rewards, clamp=math.inf).max() > 6
    assert group_advantages(rewards, clamp=5.0).max() == 5.0
    assert group_advantages(-rewards, clamp=5.0).min() == -5.0


# Rollouts share their context


@pytest.mark.parametrize("regularizer", ["none", "ce", "kl"])
def test_a_shared_context_has_the_gradient_of_contexts_repeated_for_every_rollout(regularizer):
    """The official trainer repeats each image's context G times; one forward for all has the same loss and gradient."""
    rollouts, reference, rewards = tokens(B, G, T), tokens(B, T, seed=1), random(B, G, seed=2)
    old, base = random(B, G, T, seed=3) / 5 - 2, random(B, G, T, seed=4) / 5 - 2
    advantages = group_advantages(rewards, clamp=5.0)

    def loss(logits, rollouts, reference, advantages, old, base):
        new = token_log_probabilities(logits, rollouts)
        total = clipped_policy_loss((new - old).exp(), advantages, epsilon=0.2).mean()
        if regularizer == "ce":
            total = total + 0.1 * next_token_loss(logits, reference)
        if regularizer == "kl":
            total = total + 0.1 * kl_estimate(new, base).mean()
        return total

    shared = random(B, T, V, seed=5).requires_grad_()
    loss_shared = loss(shared, rollouts, reference, advantages, old, base)
    loss_shared.backward()

    repeated = shared.detach().repeat_interleave(G, 0).requires_grad_()  # [B * G, T, V], row b * G + g
    each = [t.flatten(0, 1)[:, None] for t in (rollouts, advantages, old, base)]
    loss_repeated = loss(repeated, each[0], reference.repeat_interleave(G, 0), *each[1:])
    loss_repeated.backward()

    assert torch.allclose(loss_shared, loss_repeated, atol=1e-14)
    assert torch.allclose(shared.grad, repeated.grad.unflatten(0, (B, G)).sum(1), atol=1e-14)
    assert shared.grad.abs().max() > 1e-3


# The clipped objective


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "learns"),
    [
        (1.0, 2.0, -2.0, True),
        (1.1, 2.0, -2.2, True),
        (1.5, 2.0, -2.4, False),  # better already, by more than ε
        (0.5, 2.0, -1.0, True),  # worse where it should be better: nothing stops it from coming back
        (0.5, -2.0, 1.6, False),  # worse already, by more than ε
        (1.5, -2.0, 3.0, True),
        (1.5, 0.0, 0.0, False),
    ],
)
def test_the_ratio_is_clipped_only_where_it_has_gone_far_enough_in_the_right_direction(ratio, advantage, loss, learns):
    r = torch.full((1, 1, 1), ratio, requires_grad=True)
    value = clipped_policy_loss(r, torch.full((1, 1), advantage), epsilon=0.2)
    value.backward()
    assert value.item() == pytest.approx(loss)
    assert r.grad.item() == pytest.approx(-advantage if learns else 0.0)


def test_every_token_of_a_rollout_has_its_rollout_s_advantage():
    advantages = torch.tensor([[1.0, -2.0]])
    loss = clipped_policy_loss(torch.ones(1, 2, 3), advantages, epsilon=0.2)
    assert loss.tolist() == [[[-1.0] * 3, [2.0] * 3]]


# KL


def test_the_kl_estimate_is_never_negative_and_zero_only_for_equal_policies():
    difference = torch.cat([torch.logspace(-7, 1, 1000), -torch.logspace(-7, 1, 1000)])
    estimate = kl_estimate(torch.zeros(2000), difference)
    assert (estimate >= 0).all() and (estimate[difference.abs() > 1e-6] > 0).all()
    assert kl_estimate(torch.tensor(-3.7), torch.tensor(-3.7)) == 0


@pytest.mark.parametrize("difference", [1e-5, -1e-5, 1e-4, 1e-3])
def test_a_small_kl_is_not_lost_in_rounding(difference):
    """Alignment starts at the base model and takes small steps; plain float32 would show 0 or noise."""
    estimate = kl_estimate(torch.tensor(0.0), torch.tensor(difference)).item()
    assert estimate == pytest.approx(difference**2 / 2, rel=2e-3)


def test_the_kl_estimate_has_the_kl_as_its_mean():
    log_p, log_q = random(V).log_softmax(0), random(V, seed=1).log_softmax(0)
    expectation = (log_p.exp() * kl_estimate(log_p, log_q)).sum()
    assert expectation.item() == pytest.approx((log_p.exp() * (log_p - log_q)).sum().item())
