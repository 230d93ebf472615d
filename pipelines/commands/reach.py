"""The user's command: where the reward of a finished run changes when one token does (docs/credit.md).

    python -m pipelines.commands.reach [--variant va-pi] [--images 64] [--groups 32]

Tokenizer, base generator and training images are those of the run; the reward is the variant's. All draws of an
image's tokens come from the base's teacher-forced logits, without noise in the prefix. With --groups it also compares
the policy gradients of all forms of credit: that of `image` has no bias, and the others leave something out.
"""

import argparse
import math
import sys
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.commands.geneval import choose_device, positive
from pipelines.config.params import Params
from pipelines.config.paths import GENERATOR
from pipelines.frame.inputs import open_generator, open_split, open_tokenizer
from pipelines.frame.launch import one_message
from pipelines.frame.stage import Stage, StagePlan, UntrackedRun
from pipelines.variants.loading import load_params
from pipelines.variants.training import LentNetworks
from pipelines.variants.variant import find_variant
from vapi_core.alignment.credit import neighbourhood_sums
from vapi_core.alignment.method import Setting
from vapi_core.alignment.reach import Reach, measure_reach
from vapi_core.alignment.reward import ReconstructionReward, open_perceptual
from vapi_core.alignment.va_pi import VaPiConfig
from vapi_core.errors import ParameterError
from vapi_core.randomness import stream
from vapi_core.sampling.sampler import invert_cdf


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipelines.commands.reach", description=__doc__.partition("\n")[0])
    parser.add_argument("--variant", default="va-pi", help="whose reward; its method is va-pi")
    parser.add_argument("--images", type=positive, default=64, help="of the training; each token of each is exchanged")
    parser.add_argument(
        "--groups", type=pairs, default=0, help="of rollouts of an image, by which gradients are compared"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser.parse_args(arguments)


def pairs(text: str) -> int:
    """An even number of groups: half of them are one estimate, half another."""
    if (number := positive(text)) % 2:
        raise argparse.ArgumentTypeError(f"{text} is odd")
    return number


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
def measure(arguments: argparse.Namespace, params: Params) -> tuple[Reach, dict[str, Direction]]:
    """Measures reach, and gradients where groups are asked for, on the first training images.

    Raises:
        ParameterError: the variant has no reward of reconstruction, or one whose terms have no error maps.
    """
    alignment = find_variant(params, arguments.variant).alignment
    if alignment is None or not isinstance(alignment.config, VaPiConfig) or not alignment.config.reward.terms:
        raise ParameterError(
            "--variant", f"{arguments.variant} has no reward of reconstruction; name one of method va-pi."
        )
    device = torch.device(choose_device(arguments.device))
    generator, tokenizer = open_generator(GENERATOR, device), open_tokenizer(device)
    data = open_split("train", device, params.generator.family)
    networks = LentNetworks(Stage(StagePlan("reach", None, {}), params, device, UntrackedRun(), ""), alignment)
    setting = Setting(generator, tokenizer, data, networks, alignment.optimization, arguments.seed, torch.float32)
    reward = ReconstructionReward(tokenizer, alignment.config.reward, open_perceptual(alignment.config, setting))
    items = np.arange(min(arguments.images, len(data)))
    tokens, condition = data.batch(items)
    probabilities = generator.eval()(condition, tokens[:, :-1]).softmax(-1)  # [B, T, V]
    rows = [stream(arguments.seed, "reach", int(i)).random((tokens.shape[1], 2), dtype=np.float32) for i in items]
    rollouts, others = invert_cdf(probabilities, torch.from_numpy(np.stack(rows)).to(device)).unbind(-1)
    images = data.reference_images(items)
    directions = {}
    if arguments.groups:
        size = alignment.config.group_size
        directions = compare_gradients(reward, probabilities, images, size, arguments.groups, arguments.seed)
    return measure_reach(reward, rollouts, others, images), directions


@one_message
def main(arguments: list[str]) -> int:
    """Prints shares and correlations, then gradients; 1 on an error of the user's."""
    reach, directions = measure(parse(arguments), load_params())
    told = asdict(reach)
    for credit, direction in directions.items():
        told |= {f"{credit}_{name}": value for name, value in asdict(direction).items()}
    for name, value in told.items():
        print(f"{name:18} {value:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
