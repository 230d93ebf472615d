"""Where the reward of a finished run changes when one token does (docs/credit.md): `vapi reach`.

Tokenizer, base generator and training images are those of the run; the reward is the variant's. Both draws of an
image's tokens come from the base's teacher-forced logits, without noise in the prefix.
"""

from dataclasses import asdict

import numpy as np
import torch

from pipelines.commands.device import choose_device
from pipelines.config.params import Params
from pipelines.config.paths import GENERATOR
from pipelines.frame.inputs import open_generator, open_split, open_tokenizer
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


@torch.no_grad()
def measure(params: Params, variant: str, images: int, seed: int, device_name: str) -> Reach:
    """Measures it on the first training images.

    Args:
        variant: whose reward; its method is va-pi.
        images: of the training; each token of each is exchanged.
        seed: of the two draws.

    Raises:
        ParameterError: the variant has no reward of reconstruction, or one whose terms have no error maps.
    """
    alignment = find_variant(params, variant).alignment
    if alignment is None or not isinstance(alignment.config, VaPiConfig) or not alignment.config.reward.terms:
        raise ParameterError("--variant", f"{variant} has no reward of reconstruction; name one of method va-pi.")
    device = torch.device(choose_device(device_name))
    generator, tokenizer = open_generator(GENERATOR, device), open_tokenizer(device)
    data = open_split("train", device, params.generator.family)
    networks = LentNetworks(Stage(StagePlan("reach", None, {}), params, device, UntrackedRun(), ""), alignment)
    setting = Setting(generator, tokenizer, data, networks, alignment.optimization, seed, torch.float32)
    reward = ReconstructionReward(tokenizer, alignment.config.reward, open_perceptual(alignment.config, setting))
    items = np.arange(min(images, len(data)))
    tokens, condition = data.batch(items)
    probabilities = generator.eval()(condition, tokens[:, :-1]).softmax(-1)  # [B, T, V]
    rows = [stream(seed, "reach", int(i)).random((tokens.shape[1], 2), dtype=np.float32) for i in items]
    rollouts, others = invert_cdf(probabilities, torch.from_numpy(np.stack(rows)).to(device)).unbind(-1)
    return measure_reach(reward, rollouts, others, data.reference_images(items))


def reach(variant: str = "va-pi", images: int = 64, seed: int = 0, device: str = "auto") -> None:
    """Prints the shares and correlations."""
    for name, value in asdict(measure(load_params(), variant, images, seed, device)).items():
        print(f"{name:17} {value:.3f}")
