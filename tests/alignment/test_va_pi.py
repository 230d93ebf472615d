"""The objective as a whole, on tiny models; its parts are compared with the official numbers by `tests/parity`."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import CAPTIONED, NO_DROPOUT, random_tokens, tiny_captions, tiny_generator, tiny_tokenizer
from vapi_core.alignment import va_pi as va_pi_module
from vapi_core.alignment.cross_entropy import CrossEntropy, CrossEntropyConfig
from vapi_core.alignment.noise import noisy_prefix
from vapi_core.alignment.objective import group_advantages
from vapi_core.alignment.reward import ReconstructionReward, RewardWeights
from vapi_core.alignment.va_pi import VaPi, VaPiConfig
from vapi_core.data.batches import AlignmentData
from vapi_core.data.images import to_uint8
from vapi_core.errors import TrainingError
from vapi_core.models import logits as logits_module
from vapi_core.models.policy import Captions
from vapi_core.training.loop import MicroBatch, OptimizationConfig, micro_batches, train
from vapi_core.training.pretraining import GeneratorObjective, held_out_cross_entropy

COUNT = 8
PLAIN = VaPiConfig(group_size=4, regularizer="none", reward=RewardWeights(perceptual=0.0))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def data(tokenizer):
    """Images that some tokens decode to, so that a perfect reward is within reach."""
    tokens = random_tokens(COUNT, 16)
    with torch.no_grad():
        images = to_uint8(tokenizer.decode(tokens))
    return AlignmentData(tokens.numpy().astype(np.uint16), np.arange(COUNT) % 5, images, torch.device("cpu"))


def policy(seed: int = 0):
    return tiny_generator(seed=seed, grid=4)


def va_pi(tokenizer, data, config=PLAIN, generator=None, seed=0, base=None) -> VaPi:
    reward = ReconstructionReward(tokenizer, config.reward)
    return VaPi(generator or policy(), reward, data, config, seed, base)


def whole_batch(step: int = 0) -> MicroBatch:
    return MicroBatch(step, 0, np.arange(4))


def gradient(generator) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in generator.parameters()])


@pytest.mark.parametrize("config", [PLAIN, replace(PLAIN, noise_ratio=0.5)])
def test_on_policy_the_ratio_is_exactly_one_but_its_gradient_is_not_zero(tokenizer, data, config):
    objective = va_pi(tokenizer, data, config)
    loss, metrics = objective(whole_batch())
    assert metrics["ratio"] == 1.0 and metrics["clip_fraction"] == 0.0
    assert abs(loss.item()) < 1e-6  # minus the mean advantage
    loss.backward()
    assert all(p.grad.any() for p in objective.generator.parameters() if p is not class_table(objective.generator))
    assert gradient(objective.generator).norm() > 1e-3


def class_table(generator):
    return generator.cls_embedding.embedding_table.weight  # rows of absent classes have no gradient


def repeated_context_loss(generator, base, tokens, class_ids, prefix, rollouts, rewards, config):
    """The authors' update, dropout off: every context G times, old log-probabilities by a forward of their own."""
    groups = config.group_size
    contexts = (class_ids.repeat_interleave(groups, 0), prefix.repeat_interleave(groups, 0))
    actions = rollouts.flatten(0, 1)[..., None]  # [B * G, T, 1]
    with torch.no_grad():
        old = generator(*contexts).log_softmax(-1).gather(-1, actions)[..., 0]
        reference = base(*contexts).log_softmax(-1).gather(-1, actions)[..., 0]
    log_softmax = generator(*contexts).log_softmax(-1)
    new = log_softmax.gather(-1, actions)[..., 0]
    ratio, a = (new - old).exp(), group_advantages(rewards, config.advantage_clamp).flatten()[:, None]
    clipped = ratio.clamp(1 - config.clip_epsilon, 1 + config.clip_epsilon)
    loss = -torch.minimum(ratio * a, clipped * a).mean()
    targets = tokens.repeat_interleave(groups, 0)[..., None]
    ce = -log_softmax.gather(-1, targets).mean()
    kl = ((reference - new).exp() - (reference - new) - 1).mean()
    return loss + config.regularizer_weight * {"ce": ce, "kl": kl, "none": 0.0}[config.regularizer]


@pytest.mark.parametrize("regularizer", ["ce", "kl", "none"])
def test_one_forward_an_image_has_the_gradient_of_the_repeated_contexts(tokenizer, data, regularizer):
    """In float64, so that what is left is rounding of float64."""
    config = replace(PLAIN, regularizer=regularizer, regularizer_weight=0.7, noise_ratio=0.5)
    generator, base = policy().double(), policy(seed=1).double()
    objective = va_pi(tokenizer, data, config, generator=generator, base=base)
    seen = {}
    reward = objective.reward

    def remember(rollouts, images, items):
        seen["rollouts"], (seen["rewards"], terms) = rollouts, reward(rollouts, images, items)
        return seen["rewards"], terms

    objective.reward = remember
    loss, _ = objective(whole_batch())
    loss.backward()
    ours = gradient(generator)
    generator.zero_grad()
    tokens, class_ids = data.batch(whole_batch().items)
    prefix = noisy_prefix(tokens, config.noise_ratio, config.noise_kernel, 24, objective.seed, whole_batch())
    theirs = repeated_context_loss(
        generator, base, tokens, class_ids, prefix, seen["rollouts"], seen["rewards"], config
    )
    theirs.backward()
    assert ours.dtype == torch.float64 and ours.norm() > 1e-3
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-13)
    assert torch.allclose(ours, gradient(generator), rtol=1e-10, atol=1e-14)


def test_a_large_vocabulary_goes_in_parts_to_the_same_result(tokenizer, data, monkeypatch):
    config = replace(PLAIN, regularizer="kl", noise_ratio=0.5)
    results = []
    for elements in (2**24, 5 * 24):  # all rows at once; five rows, and the base model's images one by one
        for module in (logits_module, va_pi_module):
            monkeypatch.setattr(module, "CHUNK_ELEMENTS", elements)
        objective = va_pi(tokenizer, data, config, base=policy(seed=1))
        loss, metrics = objective(whole_batch())
        loss.backward()
        results.append((loss.item(), metrics["entropy"].item(), gradient(objective.generator)))
    (loss_a, entropy_a, gradient_a), (loss_b, entropy_b, gradient_b) = results
    assert loss_b == pytest.approx(loss_a, abs=1e-6) and entropy_b == pytest.approx(entropy_a, rel=1e-6)
    assert torch.allclose(gradient_a, gradient_b, atol=1e-6)


def test_a_generator_left_in_train_mode_is_used_without_dropout(tokenizer, data):
    """Dropout would make the ratio differ from 1 and the loss differ from call to call."""
    assert not va_pi(tokenizer, data, generator=policy().train()).generator.training


CASES = [
    PLAIN,
    replace(PLAIN, regularizer="ce", noise_ratio=0.5),
    replace(PLAIN, regularizer="kl", noise_ratio=0.5, noise_kernel="uniform-except-self"),
    replace(PLAIN, regularizer="ce", noise_ratio=0.5, credit="token"),
    replace(PLAIN, regularizer="kl", credit="token-3x3"),
]


@pytest.mark.parametrize("config", CASES)
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_draw_and_learn_what_the_whole_batch_does(tokenizer, data, config, size):
    """Random streams follow positions in the global batch, not the batch that happens to hold them."""
    optimization = OptimizationConfig(learning_rate=1.0, steps=10, batch_size=4)
    results = []
    for micro_batch_size in (4, size):
        objective = va_pi(tokenizer, data, config, base=policy(seed=1))
        total, reward = 0.0, 0.0
        for batch in micro_batches(0, 3, replace(optimization, micro_batch_size=micro_batch_size), COUNT):
            share = len(batch.items) / 4
            loss, metrics = objective(batch)
            (loss * share).backward()
            total, reward = total + loss.item() * share, reward + metrics["reward"].item() * share
        results.append((total, reward, gradient(objective.generator)))
    (loss_a, reward_a, gradient_a), (loss_b, reward_b, gradient_b) = results
    assert loss_b == pytest.approx(loss_a, abs=1e-5) and reward_b == pytest.approx(reward_a, abs=1e-5)
    assert torch.allclose(gradient_a, gradient_b, atol=1e-5) and gradient_a.norm() > 1e-3


class TinyConditions:
    """Captions of eight images, of four lengths."""

    captions = tiny_captions((5, 2, 1, 3, 4, 5, 1, 2))

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, items, device):
        return Captions(self.captions.features[items].to(device), self.captions.mask[items].to(device))


@pytest.fixture(scope="module")
def captioned(data):
    return replace(data, conditions=TinyConditions())


def captioned_policy(seed: int = 0):
    return tiny_generator(seed=seed, grid=4, **(CAPTIONED | NO_DROPOUT))


@pytest.mark.parametrize("config", CASES)
def test_captions_are_a_condition_like_classes_and_micro_batches_see_their_own(tokenizer, captioned, config):
    optimization = OptimizationConfig(learning_rate=1.0, steps=10, batch_size=4)
    gradients = []
    for micro_batch_size in (4, 3):
        base = captioned_policy(seed=1)
        objective = va_pi(tokenizer, captioned, config, generator=captioned_policy(), base=base)
        for batch in micro_batches(0, 3, replace(optimization, micro_batch_size=micro_batch_size), COUNT):
            loss, metrics = objective(batch)
            (loss * len(batch.items) / 4).backward()
            assert metrics["ratio"] == 1.0
        gradients.append(gradient(objective.generator))
    assert torch.allclose(*gradients, atol=1e-5) and gradients[0].norm() > 1e-3


def test_a_generator_learns_to_follow_captions(captioned):
    """Each image has a caption and tokens of its own: only who reads the caption can know the first token."""
    generator = captioned_policy()
    config = OptimizationConfig(learning_rate=1e-2, steps=60, batch_size=COUNT)
    before = held_out_cross_entropy(generator, captioned)
    train(generator, GeneratorObjective(generator, captioned), config, count=COUNT, seed=0, log=lambda step, row: None)
    after = held_out_cross_entropy(generator, captioned)
    assert before > 3 and after < 0.3
    assert CrossEntropy(generator, captioned, CrossEntropyConfig(), 0)(whole_batch())[0].item() < 0.3
    swapped = replace(captioned, tokens=captioned.tokens[::-1])
    assert held_out_cross_entropy(generator, swapped) > 1  # less than at first, because the prefix tells much too


def test_steps_and_seeds_draw_other_rollouts_and_the_same_step_the_same(tokenizer, data):
    def rewards(seed, step):
        return va_pi(tokenizer, data, seed=seed)(whole_batch(step))[1]["reward"].item()

    assert rewards(0, 0) == rewards(0, 0)
    assert len({rewards(0, 0), rewards(0, 1), rewards(1, 0)}) == 3


def test_a_rollout_follows_the_distribution_of_the_logits_at_its_place(tokenizer, data):
    objective = va_pi(tokenizer, data, replace(PLAIN, group_size=400))
    logits = torch.full((2, 3, 24), -30.0)
    logits[0, 0, 5], logits[0, 1, 7:9], logits[0, 2, 23] = 0.0, 0.0, 0.0
    logits[1, :, 0] = 0.0
    rollouts = objective._roll_out(logits, MicroBatch(0, 0, np.arange(2)))
    assert rollouts.shape == (2, 400, 3)
    assert rollouts[0, :, 0].unique().tolist() == [5] and rollouts[0, :, 2].unique().tolist() == [23]
    assert rollouts[1].unique().tolist() == [0]
    sevens, eights = (rollouts[0, :, 1] == 7).sum(), (rollouts[0, :, 1] == 8).sum()
    assert sevens + eights == 400 and 140 < sevens < 260


def test_images_of_a_batch_draw_independently_of_each_other(tokenizer, data):
    objective = va_pi(tokenizer, data)
    rollouts = objective._roll_out(
        torch.zeros(4, 16, 24), MicroBatch(0, 0, np.zeros(4, dtype=int))
    )  # the same image 4 times
    assert len(rollouts.flatten(0, 1).unique(dim=0)) == 4 * 4


@pytest.mark.parametrize("regularizer", ["ce", "kl"])
def test_a_regularizer_adds_its_weight_times_what_is_logged(tokenizer, data, regularizer):
    base = policy(seed=1)
    plain, _ = va_pi(tokenizer, data)(whole_batch())
    config = replace(PLAIN, regularizer=regularizer, regularizer_weight=0.3)
    loss, metrics = va_pi(tokenizer, data, config, base=base)(whole_batch())
    assert metrics[regularizer] > 0.01
    assert (loss - plain).item() == pytest.approx(0.3 * metrics[regularizer].item(), abs=1e-5)


def test_the_kl_to_the_base_is_zero_at_the_start_and_the_base_learns_nothing(tokenizer, data):
    base = policy()
    config = replace(PLAIN, regularizer="kl")
    loss, metrics = va_pi(tokenizer, data, config, generator=copy.deepcopy(base), base=base)(whole_batch())
    loss.backward()
    assert metrics["kl"] == 0.0 and all(p.grad is None for p in base.parameters())


def test_the_kl_is_logged_as_often_as_asked_and_only_then_is_a_base_needed(tokenizer, data):
    objective = va_pi(tokenizer, data, replace(PLAIN, log_kl_every=3), base=policy(seed=1))
    assert ["kl" in objective(whole_batch(step))[1] for step in range(5)] == [True, False, False, True, False]
    assert "kl" not in va_pi(tokenizer, data)(whole_batch())[1]
    with pytest.raises(AssertionError):
        va_pi(tokenizer, data, replace(PLAIN, log_kl_every=3))


def test_metrics_are_what_they_are_called(tokenizer, data):
    objective = va_pi(tokenizer, data, replace(PLAIN, regularizer="ce"))
    torch.nn.init.zeros_(objective.generator.output.weight)  # uniform predictions
    metrics = objective(whole_batch())[1]
    assert metrics["entropy"].item() == pytest.approx(np.log(24), rel=1e-5)
    assert metrics["ce"].item() == pytest.approx(np.log(24), rel=1e-5)
    assert metrics["reward"].item() == pytest.approx(-metrics["reward_mse"].item(), rel=1e-5)
    assert 0.5 < metrics["advantage_magnitude"] < 1 and metrics["reward_spread"] > 0
    assert not any(value.requires_grad for value in metrics.values())


def test_alignment_raises_the_reward_of_fresh_rollouts(tokenizer, data):
    """By the policy gradient alone: nothing here sees the reference tokens as targets."""
    generator = policy()

    def reward() -> float:
        """Mean reward of 32 rollouts of each image, drawn with numbers that training does not use."""
        judge = va_pi(tokenizer, data, replace(PLAIN, group_size=32), generator=generator, seed=99)
        with torch.no_grad():
            return judge(MicroBatch(0, 0, np.arange(COUNT)))[1]["reward"].item()

    before = reward()
    objective = va_pi(tokenizer, data, replace(PLAIN, group_size=8), generator=generator)
    config = OptimizationConfig(learning_rate=1e-2, steps=40, batch_size=COUNT)
    train(generator, objective, config, count=COUNT, seed=0, log=lambda step, row: None)
    after = reward()
    assert before < 0 and after > 0.8 * before  # nearer to 0, the reward of the reference tokens


def test_logits_that_are_not_numbers_end_in_an_error_of_the_training_although_nothing_can_be_drawn_from_them(
    tokenizer, data
):
    generator = policy()
    with torch.no_grad():
        generator.output.weight[3] = torch.inf
    settings = OptimizationConfig(learning_rate=1e-3, steps=4, batch_size=4)
    with pytest.raises(TrainingError, match="stopped at step 1: loss is nan"):
        objective = va_pi(tokenizer, data, generator=generator)
        train(generator, objective, settings, count=COUNT, seed=0, log=lambda step, row: None)
