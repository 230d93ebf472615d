"""Values are compared with the official numbers by `tests/parity`; this is what they mean."""

import pytest
import torch
from torch import Tensor

from tests.tiny import random_tokens, tiny_tokenizer
from vapi_core.alignment.reward import ReconstructionReward, RewardWeights

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
    "weights", [MSE, RewardWeights(0, 0, l1=1.0), RewardWeights(0, 1.0), RewardWeights(1, 1, 1, 0)]
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
