"""Credit per token: its rewards add up to the image's, and its gradient is the same in the mean, with less noise."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tiny import random_tokens, tiny_generator, tiny_tokenizer
from vapi_core.alignment.credit import cell_means, neighbourhood_sums, token_advantages
from vapi_core.alignment.objective import clipped_policy_loss, group_advantages
from vapi_core.alignment.reach import measure_reach
from vapi_core.alignment.reward import ReconstructionReward, RewardWeights
from vapi_core.alignment.va_pi import VaPi, VaPiConfig
from vapi_core.data.batches import AlignmentData
from vapi_core.data.images import to_uint8
from vapi_core.models.classifier import PlainClassifier
from vapi_core.models.llamagen.tokenizer import Tokenizer
from vapi_core.models.perceptual import LPIPS, VGG_SLICES, FeatureDistance
from vapi_core.training.loop import MicroBatch, OptimizationConfig, train

NOTHING = RewardWeights(**{f.name: 0.0 for f in fields(RewardWeights)})
MSE = replace(NOTHING, mse=1.0)
EVERYTHING = RewardWeights(mse=2.0, l1=0.5, perceptual=3.0, embedding=1.0)
PLAIN = VaPiConfig(group_size=4, regularizer="none", reward=MSE)


class Painter(Tokenizer):
    """A decoder of local support: the first three numbers of a token's code are the color of its cell."""

    def decode_codes(self, codes: Tensor) -> Tensor:
        return F.interpolate(codes[:, :3], scale_factor=self.config.downsample)


def painter() -> Painter:
    model = Painter(tiny_tokenizer().config)
    model.load_state_dict(tiny_tokenizer().state_dict())
    return model.eval()


def classifier_distance() -> FeatureDistance:
    torch.manual_seed(0)
    return FeatureDistance(PlainClassifier(5))


def lpips() -> LPIPS:
    torch.manual_seed(0)
    network = LPIPS()
    for number in range(len(VGG_SLICES)):
        getattr(network, f"lin{number}").weight().abs_()
    return network


def problem(tokenizer, grid=(4, 4)) -> tuple[Tensor, Tensor]:
    """Rollouts [2, 5, T], and images that decode from the first of each."""
    rollouts = random_tokens(2 * 5, grid[0] * grid[1]).unflatten(0, (2, 5))
    with torch.no_grad():
        return rollouts, tokenizer.decode(rollouts[:, 0], grid)


# Cells


@pytest.mark.parametrize("size", [(8, 12), (4, 6), (2, 3), (1, 1), (7, 5), (3, 13)])
def test_the_mean_over_the_cells_is_the_mean_of_the_map_whatever_the_sizes(size):
    error_map = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    cells = cell_means(error_map, (4, 6))
    assert cells.shape == (2, 3, 24)
    assert torch.allclose(cells.mean(-1), error_map.mean((-1, -2)), rtol=1e-6)


def test_a_cell_has_the_pixels_that_lie_in_it():
    blocks = torch.arange(16.0).reshape(4, 4)
    assert cell_means(blocks, (2, 2)).tolist() == [2.5, 4.5, 10.5, 12.5]
    assert cell_means(torch.tensor([[1.0, 2.0]]), (2, 4)).tolist() == [1, 1, 2, 2] * 2  # a coarse pixel fills its cells
    shared = cell_means(torch.tensor([[3.0, 6.0, 9.0]]), (1, 2))  # the middle pixel lies half in either cell
    assert torch.allclose(shared, torch.tensor([(3 + 6 / 2) / 1.5, (6 / 2 + 9) / 1.5]))


def test_a_neighbourhood_is_a_ninth_of_its_cells_at_the_border_too():
    rewards = torch.zeros(1, 1, 12)
    rewards[0, 0, 5] = 9.0  # row 1, column 1 of three rows and four columns
    sums = neighbourhood_sums(rewards, (3, 4)).reshape(3, 4)
    assert torch.allclose(sums, torch.tensor([[1.0, 1, 1, 0]] * 3))


# The rewards of all tokens have the image's reward as their mean


@pytest.mark.parametrize(
    ("name", "network"), [(f.name, classifier_distance) for f in fields(RewardWeights)] + [("perceptual", lpips)]
)
@pytest.mark.parametrize(("levels", "grid"), [(2, (14, 14)), (3, (7, 7)), (3, (9, 6))])
def test_every_term_is_the_mean_of_its_cells(name, network, levels, grid):
    """Also where the perceptual stages, of 14, 7 and 3 pixels, do not divide the grid of 7 tokens."""
    tokenizer = tiny_tokenizer(levels=levels)
    rollouts, images = problem(tokenizer, grid)
    reward = ReconstructionReward(tokenizer, replace(NOTHING, **{name: 2.0}), network())
    rewards, terms = reward(rollouts, images)
    per_token, terms_again = reward.per_token(rollouts, images)
    assert per_token.shape == rollouts.shape
    assert torch.allclose(per_token.mean(-1), rewards, rtol=1e-4, atol=1e-6) and rewards.abs().max() > 1e-3
    assert torch.allclose(terms_again[name], terms[name], rtol=1e-4, atol=1e-6)
    assert (per_token.std(-1) > 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_a_time", [1, 3, 10])
def test_all_terms_add_up_however_many_rollouts_are_decoded_at_a_time(dtype, at_a_time):
    rollouts, images = problem(tokenizer := tiny_tokenizer())
    distance = classifier_distance()
    whole = ReconstructionReward(tokenizer, EVERYTHING, distance, dtype)
    parts = ReconstructionReward(
        tokenizer, EVERYTHING, distance, dtype, kept_features=10**6, rollouts_at_a_time=at_a_time
    )
    rewards, terms = whole(rollouts, images)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2  # other chunks, other rounding
    for reward in (whole, parts):
        per_token, terms_again = reward.per_token(rollouts, images, np.arange(2))
        assert torch.allclose(per_token.mean(-1), rewards, atol=tolerance) and per_token.dtype == torch.float32
        assert all(torch.allclose(terms_again[name], terms[name], atol=tolerance) for name in terms)


def test_without_any_term_no_token_is_better_than_another():
    rollouts, images = problem(tokenizer := tiny_tokenizer())
    rewards, terms = ReconstructionReward(tokenizer, NOTHING).per_token(rollouts, images)
    assert rewards.shape == rollouts.shape and not rewards.any() and terms == {}


# Advantages


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_the_advantages_of_a_single_token_are_those_of_its_image():
    rewards = random(3, 8)
    assert torch.allclose(token_advantages(rewards[..., None], 5.0)[..., 0], group_advantages(rewards, 5.0))


def test_a_token_is_compared_with_itself_in_other_rollouts_over_one_spread_an_image():
    rewards = random(3, 8, 6)
    rewards[..., 0] = 100 + rewards[..., 0] / 1000  # far from the others, and hardly varying
    advantages = token_advantages(rewards, math.inf)
    assert torch.allclose(advantages.mean(1), torch.zeros(3, 6), atol=1e-5)
    assert torch.allclose(advantages.var(1).mean(-1), torch.ones(3), rtol=1e-4)
    assert advantages[..., 0].abs().max() < 0.01 < advantages[..., 1:].abs().max()
    assert torch.allclose(token_advantages(7 * rewards - 3, math.inf), advantages, atol=1e-3)
    assert token_advantages(rewards, 0.5).abs().max() == 0.5


@pytest.mark.parametrize("size", [2, 13, 15])
def test_equal_rewards_teach_nothing_at_all(size):
    assert not token_advantages(torch.full((2, size, 9), 0.7), 5.0).any()


def test_every_token_has_its_own_advantage():
    advantages = torch.tensor([[[1.0, 2.0], [-3.0, 0.0]]])
    assert torch.equal(clipped_policy_loss(torch.ones(1, 2, 2), advantages, 0.2), -advantages)


# The same gradient in the mean, with less noise

GROUPS, G, T, V = 4000, 8, 16, 24


@pytest.fixture(scope="module")
def gradients() -> dict[str, Tensor]:
    """Policy gradients by the logits [GROUPS, T, V] of one image, a group each, and their exact mean.

    Without the division by the spread, which is another one for each form: the reward of the image is the mean over its
    tokens, so a token's part of it is its own reward over T.
    """
    torch.manual_seed(0)
    tokenizer = painter()
    log_p = torch.randn(T, V).log_softmax(-1)
    reference = random_tokens(1, T)
    with torch.no_grad():
        image = tokenizer.decode(reference)
    drawn = log_p.exp().multinomial(GROUPS * G, replacement=True)  # [T, GROUPS * G]
    rollouts = drawn.T.reshape(GROUPS, G, T)
    reward = ReconstructionReward(tokenizer, MSE)
    images = image.expand(GROUPS, -1, -1, -1)
    of_image, _ = reward(rollouts, images)
    of_token, _ = reward.per_token(rollouts, images)
    score = F.one_hot(rollouts, V) - log_p.exp()  # of log p by the logits [GROUPS, G, T, V]

    def gradient(rewards: Tensor) -> Tensor:
        centred = (rewards - rewards.mean(1, keepdim=True)).double()
        return (centred[..., None] * score).mean(1)

    colors = tokenizer.quantize.codebook[:, :3].detach()
    r = -(colors - colors[reference[0]][:, None]).square().mean(-1).double()  # [T, V], of each code in each cell
    p = log_p.exp().double()
    image_advantages = group_advantages(of_image, math.inf)[..., None].expand_as(of_token)
    return {
        "image over its spread": gradient(image_advantages),
        "token over its spread": gradient(token_advantages(of_token, math.inf)),
        "image": gradient(of_image[..., None].expand_as(of_token)),
        "token": gradient(of_token / T),
        "token-3x3": gradient(neighbourhood_sums(of_token, (4, 4)) * 9 / T),
        "exact": (1 - 1 / G) * p * (r - (p * r).sum(-1, keepdim=True)) / T,  # a group's mean has 1 / G of each member
    }


@pytest.mark.parametrize("credit", ["image", "token", "token-3x3"])
def test_the_mean_gradient_is_the_exact_one(gradients, credit):
    """384 entries, each within 4.5 standard errors: by chance one test in 400 fails, and the seed is fixed."""
    error = gradients[credit].mean(0) - gradients["exact"]
    standard_error = gradients[credit].std(0) / math.sqrt(GROUPS)
    assert (error.abs() < 4.5 * standard_error).all()
    assert 0.8 < (error / standard_error).square().mean() < 1.2
    assert (gradients["exact"].abs() > 4.5 * standard_error).sum() > 100  # the bound could tell a gradient from none


def test_credit_per_token_has_less_noise(gradients):
    noise = {credit: gradients[credit].var(0).sum().item() for credit in ("image", "token", "token-3x3")}
    print({credit: f"variance 1 / {noise['image'] / value:.2f}" for credit, value in noise.items()})
    assert noise["image"] > 8 * noise["token"]
    assert noise["image"] > 1.5 * noise["token-3x3"] > 1.5 * noise["token"]


def test_the_division_by_the_spread_makes_the_gradient_per_token_longer(gradients):
    """About √T times: the spread of an image's reward is that of the mean of T independent errors."""
    exact = gradients["exact"]
    image, token = (
        (gradients[f"{credit} over its spread"].mean(0) * exact).sum() / exact.square().sum()
        for credit in ("image", "token")
    )
    print(f"{token / image:.2f} times as long, √T is {math.sqrt(T):.2f}")
    assert 0.8 < token / image / math.sqrt(T) < 1.2


# The bias: where a decoder shows a token


def test_a_painted_token_changes_its_own_cell_only():
    rollouts, images = problem(tokenizer := painter())
    reach = measure_reach(ReconstructionReward(tokenizer, MSE), rollouts[:, 1], rollouts[:, 2], images)
    assert (reach.own, reach.around, reach.elsewhere) == (1.0, 0.0, 0.0)
    assert reach.own_correlation == pytest.approx(1.0) and reach.near_correlation == pytest.approx(1.0)


@pytest.mark.parametrize("weights", [MSE, EVERYTHING])
def test_a_convolutional_decoder_shows_a_token_the_less_the_farther_a_cell_is(weights):
    rollouts, images = problem(tokenizer := tiny_tokenizer(), (6, 6))
    reward = ReconstructionReward(tokenizer, weights, classifier_distance())
    reach = measure_reach(reward, rollouts[:, 1], rollouts[:, 2], images)
    assert reach.own + reach.around + reach.elsewhere == pytest.approx(1.0)
    around = 220 / 36  # cells around a token in the mean: 3 in a corner, 5 at a border, 8 inside
    assert reach.own > reach.around / around > reach.elsewhere / (35 - around) > 0
    assert 0 < reach.own_correlation < reach.near_correlation < 1


# The objective


def images_of(tokenizer: Tokenizer) -> AlignmentData:
    """Eight images that some tokens decode to."""
    tokens = random_tokens(8, 16)
    with torch.no_grad():
        images = to_uint8(tokenizer.decode(tokens))
    return AlignmentData(tokens.numpy().astype(np.uint16), np.arange(8) % 5, images, torch.device("cpu"))


def va_pi(config: VaPiConfig, tokenizer: Tokenizer | None = None, generator=None, seed: int = 0) -> VaPi:
    tokenizer, generator = tokenizer or tiny_tokenizer(), generator or tiny_generator(grid=4)
    reward = ReconstructionReward(tokenizer, config.reward)
    return VaPi(generator, reward, images_of(tokenizer), config, seed, tiny_generator(seed=1, grid=4))


@pytest.mark.parametrize("credit", ["token", "token-3x3"])
def test_credit_changes_the_advantages_and_nothing_else(credit):
    """The same tokens are drawn, and curves of the reward mean the same."""
    config = replace(PLAIN, regularizer="kl", noise_ratio=0.5)
    batch = MicroBatch(0, 0, np.arange(4))
    loss, metrics = va_pi(config)(batch)
    loss_per_token, per_token = va_pi(replace(config, credit=credit))(batch)
    assert per_token.keys() == metrics.keys()
    assert per_token.pop("advantage_magnitude") != metrics.pop("advantage_magnitude")
    assert all(torch.allclose(per_token[name], metrics[name], rtol=1e-5) for name in metrics)
    assert torch.allclose(loss_per_token, loss, atol=1e-5)  # on-policy both are the regularizer alone


@pytest.mark.parametrize("credit", ["token", "token-3x3"])
def test_the_gradient_is_that_of_every_token_s_own_advantage(credit):
    objective = va_pi(replace(PLAIN, credit=credit))
    batch = MicroBatch(0, 0, np.arange(4))
    loss, _ = objective(batch)
    loss.backward()
    ours = [p.grad.clone() for p in objective.generator.parameters()]
    objective.generator.zero_grad()

    tokens, condition = objective.data.batch(batch.items)
    logits = objective.generator(condition, tokens[:, :-1])
    rollouts = objective._roll_out(logits.detach(), batch)
    rewards, _ = objective.reward.per_token(rollouts, objective.data.reference_images(batch.items))
    if credit == "token-3x3":
        rewards = neighbourhood_sums(rewards, (4, 4))
    log_p = logits.log_softmax(-1)[:, None].expand(-1, 4, -1, -1).gather(-1, rollouts[..., None])[..., 0]
    (-(token_advantages(rewards, 5.0) * log_p).mean()).backward()
    for gradient, p in zip(ours, objective.generator.parameters(), strict=True):
        assert torch.allclose(gradient, p.grad, atol=1e-6)
    assert max(gradient.abs().max() for gradient in ours) > 1e-3


def error_left(tokenizer: Tokenizer, credit: str) -> float:
    """Share of the error of fresh rollouts that 40 steps of the policy gradient leave."""
    generator = tiny_generator(grid=4)

    def error() -> float:
        with torch.no_grad():
            judge = va_pi(replace(PLAIN, group_size=32), tokenizer, generator, seed=99)
            return -judge(MicroBatch(0, 0, np.arange(8)))[1]["reward"].item()

    before = error()
    config = OptimizationConfig(learning_rate=1e-2, steps=40, batch_size=8)
    objective = va_pi(replace(PLAIN, group_size=8, credit=credit), tokenizer, generator)
    train(generator, objective, config, count=8, seed=0, log=lambda step, row: None)
    return error() / before


@pytest.mark.parametrize(
    ("decoder", "better", "worse"), [(painter, "token", "image"), (tiny_tokenizer, "image", "token")]
)
def test_what_learns_faster_depends_on_how_far_the_decoder_shows_a_token(decoder, better, worse):
    """Of local support there is only noise to lose. An untrained decoder shows a token everywhere: bias costs more."""
    left = {credit: error_left(decoder(), credit) for credit in (better, worse)}
    print({credit: round(value, 3) for credit, value in left.items()})
    assert left[better] < left[worse] - 0.05 and left[worse] < 0.95
