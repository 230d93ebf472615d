"""The user's command: where the reward of a finished run changes when one token does (docs/credit.md).

    python -m pipelines.commands.reach [--variant va-pi] [--images 64]

Tokenizer, base generator and training images are those of the run; the reward is the variant's. Both draws of an
image's tokens come from the base's teacher-forced logits, without noise in the prefix.
"""

import argparse
import sys
from dataclasses import asdict

import numpy as np
import torch

from pipelines.commands.geneval import choose_device, positive
from pipelines.config.params import Params
from pipelines.config.paths import GENERATOR
from pipelines.frame.inputs import open_generator, open_split, open_tokenizer
from pipelines.frame.launch import one_message
from pipelines.frame.stage import Stage, StagePlan, UntrackedRun
from pipelines.variants.loading import load_params
from pipelines.variants.training import LentNetworks
from pipelines.variants.variant import find_variant
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
    parser.add_argument("--seed", type=int, default=0, help="of the two draws")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser.parse_args(arguments)


@torch.no_grad()
def reach(arguments: argparse.Namespace, params: Params) -> Reach:
    """Measures it on the first training images.

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
    return measure_reach(reward, rollouts, others, data.reference_images(items))


@one_message
def main(arguments: list[str]) -> int:
    """Prints the shares and correlations; 1 on an error of the user's."""
    for name, value in asdict(reach(parse(arguments), load_params())).items():
        print(f"{name:17} {value:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
