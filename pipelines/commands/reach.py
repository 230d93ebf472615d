"""Where the reward of a finished run changes when one token does (docs/credit.md): `vapi reach`.

Tokenizer, base generator and training images are those of the run; the reward is the variant's. All draws of an
image's tokens come from the base's teacher-forced logits, without noise in the prefix. With --groups it also compares
the policy gradients of all forms of credit: that of `image` has no bias, and the others leave something out.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.commands.device import choose_device
from pipelines.config.loading import load_params
from pipelines.config.params import Params
from pipelines.config.paths import GENERATOR
from pipelines.config.variant import find_variant
from pipelines.frame.inputs import open_generator, open_split, open_tokenizer
from pipelines.frame.stage import Stage, StagePlan, UntrackedRun
from pipelines.variants.training import LentNetworks
from vapi_core.alignment.credit import neighbourhood_sums
from vapi_core.alignment.method import Setting
from vapi_core.alignment.reach import Reach, measure_reach
from vapi_core.alignment.reward import ReconstructionReward, open_perceptual
from vapi_core.alignment.va_pi import VaPiConfig
from vapi_core.errors import ParameterError
from vapi_core.randomness import stream
from vapi_core.sampling.sampler import invert_cdf


@dataclass(frozen=True)
class Direction:
    """The mean policy gradient of one form of credit beside that of `image`, and how much one group's varies."""

    cosine: float  # between both means
    length: float  # of the mean, that of image being 1
    variance: float  # of a group's gradient, that of image being 1


def compare_gradients(
    reward: ReconstructionReward, probabilities: Tensor, images: Tensor, group_size: int, groups: int, seed: int
) -> dict[str, Direction]:
    """Gradients by the logits, without the division by the spread and without the clamp.

    Products of means are those of two halves of the groups, which are independent: noise does not lengthen them. NaN
    where it drowns them.

    Args:
        probabilities: of the policy, [B, T, V].
        images: [B, 3, H, W] in [-1, 1], which the rewards compare with.
        groups: of an image, even.
    """
    length, codes = probabilities.shape[1:]
    grid = reward.grid(images)
    halves: dict[str, list[Tensor]] = {}  # of every image: [2, T, V]
    variances: dict[str, float] = {}
    for i, p in enumerate(probabilities):
        uniforms = stream(seed, "gradient", i).random((length, groups * group_size), dtype=np.float32)
        rollouts = invert_cdf(p, torch.from_numpy(uniforms).to(p.device)).T  # [groups * G, T]
        by_cell, _ = reward.per_token(rollouts[None], images[i : i + 1])
        by_cell = by_cell.double() / length  # a token's share of the image's reward
        forms = {
            "image": by_cell.sum(-1, keepdim=True).expand_as(by_cell),
            "token": by_cell,
            "token-3x3": 9 * neighbourhood_sums(by_cell, grid),
        }
        drawn = rollouts.unflatten(0, (groups, group_size)).transpose(1, 2)  # [groups, T, G]
        for credit, rewards in forms.items():
            grouped = rewards[0].unflatten(0, (groups, group_size)).transpose(1, 2)
            centred = grouped - grouped.mean(-1, keepdim=True)  # so the part of -p in the score adds up to nothing
            gradient = torch.zeros(groups, length, codes, dtype=torch.double, device=p.device)
            gradient.scatter_add_(2, drawn, centred / group_size)
            halves.setdefault(credit, []).append(gradient.unflatten(0, (2, -1)).mean(1))
            variances[credit] = variances.get(credit, 0.0) + gradient.var(0).sum().item()

    def product(a: str, b: str) -> float:
        return sum(
            ((x[0] * y[1]).sum() + (x[1] * y[0]).sum()).item() for x, y in zip(halves[a], halves[b], strict=True)
        )

    def compared(credit: str) -> Direction:
        own, image, both = product(credit, credit), product("image", "image"), product(credit, "image")
        if min(own, image) <= 0:
            return Direction(math.nan, math.nan, variances[credit] / variances["image"])
        return Direction(both / math.sqrt(own * image), math.sqrt(own / image), variances[credit] / variances["image"])

    return {credit: compared(credit) for credit in halves if credit != "image"}


@torch.no_grad()
def measure(
    params: Params, variant: str, count: int, groups: int, seed: int, device_name: str
) -> tuple[Reach, dict[str, Direction]]:
    """Measures reach, and gradients where groups are asked for, on the first training images.

    Args:
        variant: whose reward; its method is va-pi.
        count: images of the training; each token of each is exchanged.
        groups: of rollouts of an image, by which gradients are compared: half of them are one estimate, half another.
        seed: of the draws.

    Raises:
        ParameterError: the number of groups is odd; or the variant has no reward of reconstruction, or one whose terms
        have no error maps.
    """
    if groups % 2:
        raise ParameterError("--groups", f"{groups} is odd.")
    alignment = find_variant(params, variant).alignment
    if alignment is None or not isinstance(alignment.config, VaPiConfig) or not alignment.config.reward.terms:
        raise ParameterError("--variant", f"{variant} has no reward of reconstruction; name one of method va-pi.")
    device = torch.device(choose_device(device_name))
    generator, tokenizer = open_generator(GENERATOR, device), open_tokenizer(device)
    data = open_split("train", device, params.generator.family)
    networks = LentNetworks(Stage(StagePlan("reach", None, {}), params, device, UntrackedRun(), ""), alignment)
    setting = Setting(generator, tokenizer, data, networks, alignment.optimization, seed, torch.float32)
    reward = ReconstructionReward(tokenizer, alignment.config.reward, open_perceptual(alignment.config, setting))
    items = np.arange(min(count, len(data)))
    tokens, condition = data.batch(items)
    probabilities = generator.eval()(condition, tokens[:, :-1]).softmax(-1)  # [B, T, V]
    rows = [stream(seed, "reach", int(i)).random((tokens.shape[1], 2), dtype=np.float32) for i in items]
    rollouts, others = invert_cdf(probabilities, torch.from_numpy(np.stack(rows)).to(device)).unbind(-1)
    images = data.reference_images(items)
    directions = {}
    if groups:
        size = alignment.config.group_size
        directions = compare_gradients(reward, probabilities, images, size, groups, seed)
    return measure_reach(reward, rollouts, others, images), directions


def reach(variant: str = "va-pi", images: int = 64, groups: int = 0, seed: int = 0, device: str = "auto") -> None:
    """Prints shares and correlations, then gradients where groups are asked for."""
    found, directions = measure(load_params(), variant, images, groups, seed, device)
    told = asdict(found)
    for credit, direction in directions.items():
        told |= {f"{credit}_{name}": value for name, value in asdict(direction).items()}
    for name, value in told.items():
        print(f"{name:18} {value:.4f}")
