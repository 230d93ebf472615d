"""Values are compared with the official numbers by `tests/parity`; this is what they mean."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.tiny import random_tokens, tiny_tokenizer
from vapi_core.alignment.objective import group_advantages
from vapi_core.alignment.reward import (
    ReconstructionReward,
    ReferenceFeatures,
    RewardWeights,
    plan_chunks,
    rollout_bytes,
)
from vapi_core.models.classifier import PlainClassifier
from vapi_core.models.llamagen.tokenizer import TokenizerConfig
from vapi_core.models.perceptual import FeatureDistance

MSE = RewardWeights(mse=1.0, perceptual=0.0)


class Brightness:
    """A perceptual distance of two stages: images differ as far as their mean brightness does."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def features(self, images: Tensor) -> list[Tensor]:
        self.asked.append(len(images))
        mean = images.mean((1, 2, 3), keepdim=True)
        return [mean, 2 * mean]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        return sum(((x - y) ** 2).mean((-3, -2, -1)) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def problem(tokenizer, groups: int = 5) -> tuple[Tensor, Tensor]:
    """Rollouts [3, G, 16] and images [3, 3, 8, 8] that decode from the first of each."""
    rollouts = random_tokens(3 * groups, 16).unflatten(0, (3, groups))
    with torch.no_grad():
        return rollouts, tokenizer.decode(rollouts[:, 0])


@pytest.mark.parametrize(
    "weights", [MSE, RewardWeights(mse=0, perceptual=0, l1=1.0), RewardWeights(mse=0), RewardWeights(1, 1, 1, 0)]
)
def test_the_best_rollout_is_the_one_that_decodes_to_the_image(tokenizer, weights):
    rollouts, images = problem(tokenizer)
    rewards, _ = ReconstructionReward(tokenizer, weights, Brightness())(rollouts, images)
    assert rewards.shape == (3, 5)
    assert (rewards.argmax(1) == 0).all() and (rewards <= 0).all()
    assert torch.allclose(rewards[:, 0], torch.zeros(3), atol=1e-6) and (rewards[:, 1:] < -1e-3).any()


def test_a_reward_belongs_to_its_image_and_its_rollout(tokenizer):
    rollouts, images = problem(tokenizer)
    rewards, _ = ReconstructionReward(tokenizer, MSE)(rollouts, images)
    with torch.no_grad():
        for b, g in ((0, 3), (2, 1)):
            decoded = tokenizer.decode(rollouts[b, g : g + 1])[0]
            assert rewards[b, g].item() == pytest.approx(-(decoded - images[b]).square().mean().item(), rel=1e-4)


def test_the_reward_is_the_weighted_sum_of_the_terms_and_a_weight_of_zero_leaves_a_term_out(tokenizer):
    rollouts, images = problem(tokenizer)
    weights = RewardWeights(mse=2.0, perceptual=0.5, l1=0.0, embedding=3.0)
    rewards, terms = ReconstructionReward(tokenizer, weights, Brightness())(rollouts, images)
    assert set(terms) == {"mse", "perceptual", "embedding"}
    total = 2.0 * terms["mse"] + 0.5 * terms["perceptual"] + 3.0 * terms["embedding"]
    assert torch.allclose(rewards, -total) and all(t.shape == (3, 5) for t in terms.values())


def test_the_embedding_term_is_smallest_for_the_image_s_own_tokens(tokenizer):
    rollouts, images = problem(tokenizer)
    with torch.no_grad():
        rollouts[:, 2] = tokenizer.encode(images)
    rewards, terms = ReconstructionReward(tokenizer, RewardWeights(0, 0, 0, embedding=1.0))(rollouts, images)
    assert (rewards.argmax(1) == 2).all()
    assert terms["embedding"].min() >= 0 and terms["embedding"].max() <= 2


def test_features_of_a_reference_are_computed_once_not_once_a_rollout(tokenizer):
    rollouts, images = problem(tokenizer)
    brightness = Brightness()
    ReconstructionReward(tokenizer, RewardWeights(), brightness)(rollouts, images)
    assert brightness.asked == [3, 15]


def test_images_need_not_be_square(tokenizer):
    rollouts = random_tokens(2 * 3, 24).unflatten(0, (2, 3))
    with torch.no_grad():
        images = tokenizer.decode(rollouts[:, 1], (4, 6))
    rewards, _ = ReconstructionReward(tokenizer, MSE)(rollouts, images)
    assert images.shape == (2, 3, 8, 12) and (rewards.argmax(1) == 1).all()


def test_rewards_carry_no_gradient(tokenizer):
    rollouts, images = problem(tokenizer)
    rewards, terms = ReconstructionReward(tokenizer, RewardWeights(), Brightness())(rollouts, images)
    assert not rewards.requires_grad and not any(t.requires_grad for t in terms.values())


def test_a_perceptual_weight_needs_a_perceptual_distance(tokenizer):
    with pytest.raises(AssertionError):
        ReconstructionReward(tokenizer, RewardWeights(perceptual=1.0))


# Some rollouts at a time


ALL_TERMS = RewardWeights(mse=1.0, perceptual=0.5, l1=1.0, embedding=1.0)


@pytest.mark.parametrize("at_a_time", [1, 2, 3, 5, 7, 10, 14])
def test_rewards_do_not_depend_on_how_many_rollouts_are_decoded_at_a_time(tokenizer, at_a_time):
    rollouts, images = problem(tokenizer)
    whole, terms = ReconstructionReward(tokenizer, ALL_TERMS, Brightness())(rollouts, images)
    chunked = ReconstructionReward(tokenizer, ALL_TERMS, Brightness(), rollouts_at_a_time=at_a_time)
    parts, terms_of_parts = chunked(rollouts, images)
    assert parts.shape == (3, 5) and torch.allclose(parts, whole, atol=1e-5)
    assert all(torch.allclose(terms_of_parts[name], value, atol=1e-5) for name, value in terms.items())
    assert max(chunked.perceptual.asked) <= max(1, at_a_time)


def test_a_chunk_holds_whole_groups_or_a_part_of_one():
    assert plan_chunks(images=16, group_size=8, rollouts=1000) == (16, 8)
    assert plan_chunks(images=16, group_size=8, rollouts=30) == (3, 8)
    assert plan_chunks(images=16, group_size=8, rollouts=5) == (1, 5)
    assert plan_chunks(images=16, group_size=8, rollouts=1) == (1, 1)


def test_the_memory_of_a_rollout_follows_the_decoder_and_the_pixels():
    half, full = (rollout_bytes(TokenizerConfig(), side * side, 2) for side in (192, 384))
    assert full == 4 * half and 300e6 < full < 600e6
    assert rollout_bytes(TokenizerConfig(base_channels=64), 384 * 384, 2) < full


# bfloat16, as on a GPU


def test_bfloat16_changes_advantages_by_little(tokenizer):
    """Rewards of one group differ by far more than bfloat16 rounds: the order holds, advantages move by under 0.1."""
    rollouts, images = problem(tokenizer, groups=8)
    torch.manual_seed(0)
    distance = FeatureDistance(PlainClassifier(3))
    weights = RewardWeights(mse=1.0, perceptual=1.0)
    half = ReconstructionReward(tokenizer, weights, distance, dtype=torch.bfloat16)
    rewards, terms = half(rollouts, images)
    exact, _ = ReconstructionReward(tokenizer, weights, distance)(rollouts, images)
    assert rewards.dtype == torch.float32 and all(t.dtype == torch.float32 for t in terms.values())
    assert not torch.equal(rewards, exact)
    assert torch.allclose(rewards, exact, rtol=0.02, atol=0.01)
    assert (group_advantages(rewards, 5.0) - group_advantages(exact, 5.0)).abs().max() < 0.1
    assert tokenizer.post_quant_conv.weight.dtype == next(distance.parameters()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reward_keeps_its_own_types_under_the_autocast_of_the_policy(tokenizer, dtype):
    rollouts, images = problem(tokenizer)
    torch.manual_seed(0)
    reward = ReconstructionReward(tokenizer, RewardWeights(1, 1, 1, 1), FeatureDistance(PlainClassifier(3)), dtype)
    alone, terms = reward(rollouts, images)
    inside: set[torch.dtype] = set()
    norms = [m for m in reward.decoder.decoder.modules() if isinstance(m, nn.GroupNorm)]
    hooks = [norm.register_forward_hook(lambda _, __, output: inside.add(output.dtype)) for norm in norms]
    with torch.autocast("cpu", torch.bfloat16):
        rewards, terms_inside = reward(rollouts, images)
        assert torch.is_autocast_enabled("cpu")
    for hook in hooks:
        hook.remove()
    assert inside == {dtype}
    assert torch.equal(rewards, alone) and all(torch.equal(terms_inside[name], terms[name]) for name in terms)


# Features of reference images, kept


class Convolution(nn.Module):
    """A perceptual network of one layer, that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.asked = nn.Conv2d(3, 4, 3), []

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        self.asked.append(len(images))
        return [self.layer(images)]


def test_features_of_an_image_are_computed_once_and_are_the_same_in_every_batch():
    network, images = Convolution(), torch.rand(4, 3, 8, 8)
    kept = ReferenceFeatures(network, 10**6)
    first = kept(np.array([7, 3, 9]), images[:3])
    again = kept(np.array([9, 5, 7]), images[[2, 3, 0]])
    assert network.asked == [1] * 4
    assert torch.equal(again[0][0], first[0][2]) and torch.equal(again[0][2], first[0][0])
    assert torch.equal(again[0], ReferenceFeatures(network, 0)(np.array([9, 5, 7]), images[[2, 3, 0]])[0])


def test_no_more_features_are_kept_than_were_asked_for():
    network, images = Convolution(), torch.rand(3, 3, 8, 8)
    of_one = 4 * 6 * 6 * 4
    kept = ReferenceFeatures(network, 2 * of_one)
    for _ in range(3):
        kept(np.arange(3), images)
    assert len(network.asked) == 3 + 1 + 1
