"""The paper's rivals of VA-π on tiny models: what learns, what is frozen, and that random draws follow the images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.alignment.test_reward import Brightness
from tests.tiny import CAPTIONED, random_tokens, tiny_captions, tiny_generator, tiny_tokenizer
from vapi_core.alignment.ar_grpo import ArGrpo, ArGrpoConfig
from vapi_core.alignment.cross_entropy import CrossEntropy, CrossEntropyConfig
from vapi_core.alignment.reconstruction import reconstruction_loss
from vapi_core.alignment.reward import RewardWeights
from vapi_core.alignment.straight_through import (
    StraightThrough,
    StraightThroughConfig,
    decode_straight_through,
    gumbel_noise,
    straight_through,
)
from vapi_core.alignment.tokenizer_post_training import TokenizerPostTraining
from vapi_core.data.batches import AlignmentData
from vapi_core.data.images import to_uint8
from vapi_core.errors import TrainingError
from vapi_core.models.policy import Captions
from vapi_core.training.flops import flops_per_image
from vapi_core.training.loop import MicroBatch, OptimizationConfig, autocast, micro_batches, parts_of, train

COUNT = 8
MSE = RewardWeights(perceptual=0.0)


class Bright:
    """An easy reward: how bright an image is."""

    name = "bright"

    def __call__(self, images: Tensor, items: np.ndarray) -> Tensor:
        assert images.abs().max() <= 1 and len(images) == len(items)
        return images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def data():
    tokens = random_tokens(COUNT, 16)
    with torch.no_grad():
        images = to_uint8(tiny_tokenizer().decode(tokens))
    return AlignmentData(tokens.numpy().astype(np.uint16), np.arange(COUNT) % 5, images, torch.device("cpu"))


def policy(seed: int = 0):
    return tiny_generator(seed=seed, grid=4)


def objective(method: str, data, seed: int = 0, **options):
    """A fresh objective, and the module that it trains."""
    generator, tokenizer = policy(), tiny_tokenizer()
    if method == "ste":
        config = StraightThroughConfig(reward=MSE, **options)
        return StraightThrough(generator, tokenizer, data, config, seed), generator
    if method == "tokenizer":
        return TokenizerPostTraining(tokenizer, generator, data, MSE, seed), tokenizer
    if method == "ar-grpo":
        config = replace(ArGrpoConfig(group_size=4, guidance_scale=1.5), **options)
        return ArGrpo(generator, tokenizer, [(1.0, Bright())], data, config, seed, policy(seed=1)), generator
    return CrossEntropy(generator, data, CrossEntropyConfig(noise_ratio=0.5), seed=0), generator


METHODS = ["ste", "tokenizer", "ar-grpo", "cross-entropy"]
IN_PARTS = ["ste", "tokenizer", "ar-grpo"]


@pytest.mark.parametrize("method", METHODS)
def test_eight_micro_batches_of_one_learn_what_one_of_eight_does(data, method):
    results = []
    for size in (8, 1):
        loss_of, module = objective(method, data)
        total = 0.0
        config = OptimizationConfig(learning_rate=1.0, steps=1, batch_size=8, micro_batch_size=size)
        for batch in micro_batches(0, 3, config, COUNT):
            loss, _ = loss_of(batch)
            (loss * len(batch.items) / 8).backward()
            total += loss.item() * len(batch.items) / 8
        results.append((total, torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])))
    (loss_a, gradient_a), (loss_b, gradient_b) = results
    assert loss_b == pytest.approx(loss_a, abs=1e-5)
    assert torch.allclose(gradient_a, gradient_b, atol=1e-5) and gradient_a.norm() > 1e-3


def step(method: str, data, part_bytes: int, dtype: torch.dtype) -> tuple[int, dict[str, float], Tensor]:
    """How many parts a micro-batch of four images has, its metrics, and the gradient of all weights."""
    loss_of, module = objective(method, data)
    loss_of.part_bytes = part_bytes
    parts = parts_of(autocast(loss_of, torch.device("cpu"), dtype), MicroBatch(0, 2, np.arange(4)))
    metrics: dict[str, float] = {}
    for part in parts:
        loss, means = part.loss()
        (loss * part.share).backward()
        for name, value in {"loss": loss.detach(), **means}.items():
            metrics[name] = metrics.get(name, 0.0) + float(value) * part.share
    return len(parts), metrics, torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("method", IN_PARTS)
def test_many_small_parts_have_the_gradient_of_one(data, method):
    """Four images, or sixteen rollouts, in passes of one each: draws, rewards and the backward."""
    count, metrics, gradient = step(method, data, 2**40, torch.float32)
    many, metrics_of_many, gradient_of_many = step(method, data, 1, torch.float32)
    assert (count, many) == (1, 16 if method == "ar-grpo" else 4)
    assert metrics_of_many == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    assert torch.allclose(gradient_of_many, gradient, rtol=1e-4, atol=1e-6) and gradient.norm() > 1e-3


@pytest.mark.parametrize("method", IN_PARTS)
def test_parts_in_bfloat16_have_a_gradient_for_every_weight(data, method):
    """What was cast without a gradient, while rollouts were drawn, is not used again in the passes that need one."""
    gradients = [step(method, data, part_bytes, torch.bfloat16)[2] for part_bytes in (2**40, 1)]
    exact = step(method, data, 2**40, torch.float32)[2]
    assert all(len(gradient) == len(exact) and gradient.any() for gradient in gradients)


def test_the_cache_of_rollouts_is_in_the_type_of_the_autocast_around():
    generator = policy()
    assert generator.new_cache(1).store.dtype == torch.float32
    whole = generator.cache_bytes()
    with torch.autocast("cpu", torch.bfloat16):
        assert generator.new_cache(1).store.dtype == torch.bfloat16 and generator.cache_bytes() == whole // 2


@pytest.mark.parametrize("method", IN_PARTS)
def test_the_same_step_draws_the_same_and_other_steps_and_seeds_draw_others(data, method):
    def loss(seed, step):
        loss_of, module = objective(method, data, seed)
        loss_of(MicroBatch(step, 0, np.arange(4)))[0].backward()
        return float(sum(p.grad.square().sum() for p in module.parameters() if p.grad is not None))

    assert loss(0, 0) == loss(0, 0)
    assert len({loss(0, 0), loss(0, 1), loss(1, 0)}) == 3


def backward(loss_of) -> dict[str, Tensor]:
    loss, metrics = loss_of(MicroBatch(0, 0, np.arange(4)))
    loss.backward()
    assert not any(value.requires_grad for value in metrics.values())
    return metrics


def test_ste_moves_the_whole_generator_through_the_decoder_and_leaves_the_tokenizer_alone(data):
    loss_of, generator = objective("ste", data, ce_weight=0.0)  # so that all gradient comes through the decoder
    metrics = backward(loss_of)
    assert all(p.grad is not None and p.grad.any() for p in generator.parameters())
    assert all(p.grad is None for p in loss_of.tokenizer.parameters())
    assert metrics["reconstruction"] == metrics["reconstruction_mse"]


def test_ste_decodes_exactly_the_tokens_that_it_draws():
    tokenizer, logits = tiny_tokenizer(), torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(0))
    one_hot, tokens = straight_through(logits, torch.zeros_like(logits), temperature=1.0, tau=0.5)
    assert torch.equal(tokens, logits.argmax(-1))
    with torch.no_grad():
        images = decode_straight_through(tokenizer, one_hot, tokenizer.quantize.codebook, torch.Size([3, 3, 8, 8]))
        assert torch.allclose(images, tokenizer.decode(tokens), atol=1e-5)


def test_gumbel_noise_draws_tokens_from_the_distribution_of_the_logits():
    probabilities = torch.tensor([0.5, 0.3, 0.2, 0.0])
    noise = gumbel_noise(0, MicroBatch(0, 0, np.zeros(400, dtype=int)), 10, 4)
    _, tokens = straight_through(probabilities.log().expand(400, 10, 4), noise, 1.0, 1.0)
    shares = torch.bincount(tokens.flatten(), minlength=4) / tokens.numel()
    assert torch.allclose(shares, probabilities, atol=0.03) and shares[3] == 0


def test_tokenizer_post_training_moves_the_decoder_and_nothing_that_gives_tokens_their_meaning(data):
    loss_of, tokenizer = objective("tokenizer", data)
    backward(loss_of)
    learns = {name for name, p in tokenizer.named_parameters() if p.grad is not None and p.grad.any()}
    assert learns and all(name.startswith(("decoder.", "post_quant_conv.")) for name in learns)
    assert {name for name, _ in tokenizer.named_parameters() if name.startswith("post_quant_conv.")} <= learns
    assert all(p.grad is None for p in loss_of.generator.parameters())


def test_a_post_trained_tokenizer_still_gives_the_same_tokens_but_decodes_them_better(data):
    loss_of, tokenizer = objective("tokenizer", data)
    images = data.reference_images(np.arange(COUNT))
    before = tokenizer.encode(images)
    rows = []
    config = OptimizationConfig(learning_rate=3e-3, steps=8, batch_size=COUNT)
    train(tokenizer, loss_of, config, count=COUNT, seed=0, log=lambda step, row: rows.append(row))
    assert torch.equal(tokenizer.encode(images), before)
    assert rows[-1]["reconstruction_mse"] < 0.9 * rows[0]["reconstruction_mse"]


def test_the_policy_of_ar_grpo_is_the_guided_distribution_that_it_samples(data):
    """So the ratio is 1, and the log-probabilities are those by which the rollouts were drawn."""
    loss_of, generator = objective("ar-grpo", data, guidance_scale=3.0)
    assert backward(loss_of)["ratio"] == 1.0
    class_ids = torch.zeros(500, dtype=torch.long)
    loss_of.config = replace(loss_of.config, group_size=500)
    rollouts = loss_of._roll_out(class_ids, MicroBatch(0, 0, np.arange(1)))
    with torch.no_grad():
        expected = loss_of._log_probabilities(generator, class_ids, rollouts)[0, 0, 0].exp()
    first = int(rollouts[0, 0])
    assert (rollouts[:, 0] == first).float().mean().item() == pytest.approx(float(expected), abs=0.07)


def test_ar_grpo_trains_the_null_class_with_guidance_and_not_without(data):
    for scale, moved in ((1.5, True), (1.0, False)):
        loss_of, generator = objective("ar-grpo", data, guidance_scale=scale)
        backward(loss_of)
        null_row = generator.cls_embedding.embedding_table.weight.grad[generator.null_class]
        assert bool(null_row.any()) is moved
        assert all(p.grad is None for p in (*loss_of.tokenizer.parameters(), *loss_of.base.parameters()))


def test_ar_grpo_adds_the_weighted_kl_to_the_base_and_needs_none_without_it(data):
    batch = MicroBatch(0, 0, np.arange(4))
    plain, _ = objective("ar-grpo", data, kl_weight=0.0)[0](batch)
    loss, metrics = objective("ar-grpo", data, kl_weight=0.3)[0](batch)
    assert metrics["kl"] > 0.01
    assert (loss - plain).item() == pytest.approx(0.3 * metrics["kl"].item(), abs=1e-5)
    config = ArGrpoConfig(kl_weight=0.0)
    ArGrpo(policy(), tiny_tokenizer(), [(1.0, Bright())], data, config, seed=0)


class TinyConditions:
    """Captions of eight images, of four lengths."""

    lengths = np.array([5, 2, 1, 3, 4, 5, 1, 2])
    captions = tiny_captions(tuple(lengths))

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, items, device):
        return Captions(self.captions.features[items], self.captions.mask[items])


class ItemReward(Bright):
    """Keeps which items it was asked about, and what their images looked like."""

    def __init__(self):
        self.asked: list[tuple[list[int], Tensor]] = []

    def __call__(self, images: Tensor, items: np.ndarray) -> Tensor:
        self.asked.append((items.tolist(), images))
        return super().__call__(images, items)


def test_ar_grpo_draws_from_captions_and_rewards_every_image_for_its_own(data):
    captioned, reward = replace(data, conditions=TinyConditions()), ItemReward()
    generator, base = (tiny_generator(seed=seed, grid=4, **CAPTIONED) for seed in (0, 1))
    config = ArGrpoConfig(group_size=2, guidance_scale=1.5)
    loss_of = ArGrpo(generator, tiny_tokenizer(), [(1.0, reward)], captioned, config, 0, base)
    loss, metrics = loss_of(MicroBatch(0, 0, np.array([6, 0, 3])))
    loss.backward()
    assert metrics["ratio"] == 1.0 and generator.cls_embedding.cap_proj.fc1.weight.grad.any()
    (items, images), *rest = reward.asked
    assert items == [6, 6, 0, 0, 3, 3] and not rest
    loss_of(
        MicroBatch(0, 1, np.array([0]))
    )  # the same place of the batch by itself: the same draws for the same caption
    assert torch.allclose(reward.asked[1][1], images[2:4], atol=1e-5)


def test_ar_grpo_raises_an_easy_reward_in_a_few_steps(data):
    loss_of, generator = objective("ar-grpo", data, group_size=8, kl_weight=0.0)
    rows = []
    config = OptimizationConfig(learning_rate=1e-2, steps=12, batch_size=COUNT)
    train(generator, loss_of, config, count=COUNT, seed=0, log=lambda step, row: rows.append(row))
    first, last = (np.mean([row["reward"] for row in part]) for part in (rows[:3], rows[-3:]))
    assert last > first + 2 * rows[0]["reward_spread"] / np.sqrt(3 * 8 * COUNT)
    assert rows[0]["reward"] == pytest.approx(rows[0]["reward_bright"])


def test_the_reconstruction_loss_weighs_the_terms_of_the_reward():
    a, b = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)
    loss, terms = reconstruction_loss(a, b, RewardWeights(mse=2.0, perceptual=3.0, l1=4.0), Brightness())
    assert terms["mse"] == 0.25 and terms["l1"] == 0.5
    assert loss.item() == pytest.approx(2 * 0.25 + 3 * terms["perceptual"].item() + 4 * 0.5)


@pytest.mark.parametrize("method", METHODS)
def test_counting_operations_leaves_the_training_as_it_was(data, method):
    config = OptimizationConfig(learning_rate=1e-2, steps=2, batch_size=4, micro_batch_size=2)
    runs = []
    for counted in (False, True):
        loss_of, module = objective(method, data)
        if counted:
            assert flops_per_image(module, loss_of, config, COUNT, seed=0) > 1e5
        rows = []
        train(module, loss_of, config, count=COUNT, seed=0, log=lambda step, row, rows=rows: rows.append(row))
        runs.append(rows)
    assert runs[0] == runs[1]


def test_the_operations_of_a_linear_layer_are_counted_forward_and_backward():
    layer = torch.nn.Linear(8, 5, bias=False)

    def loss_of(batch):
        return layer(torch.ones(len(batch.items), 8)).sum(), {}

    config = OptimizationConfig(learning_rate=1.0, steps=1, batch_size=4)
    assert flops_per_image(layer, loss_of, config, COUNT, seed=0) == 2 * 2 * 8 * 5  # forward, and the weights' gradient


@pytest.mark.parametrize("method", METHODS)
def test_logits_that_are_not_numbers_end_in_an_error_of_the_training(data, method):
    """Also those of a generator that is not what is trained."""
    loss_of, module = objective(method, data)
    with torch.no_grad():
        loss_of.generator.output.weight[3] = torch.inf
    settings = OptimizationConfig(learning_rate=1e-3, steps=4, batch_size=4)
    with pytest.raises(TrainingError, match="stopped at step 1: loss is nan"):
        train(module, loss_of, settings, count=COUNT, seed=0, log=lambda step, row: None)
