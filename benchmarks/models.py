"""Models of a profile's shape with random weights: speed does not depend on what they have learned."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from vapi_core.alignment.reward import PerceptualDistance, RewardWeights
from vapi_core.alignment.va_pi import VaPiConfig
from vapi_core.data.batches import AlignmentData
from vapi_core.data.images import encode_images
from vapi_core.errors import FileError, ParameterError
from vapi_core.models.classifier import PlainClassifier
from vapi_core.models.llamagen.generator import OFFICIAL_GENERATORS, Generator, GeneratorConfig
from vapi_core.models.llamagen.tokenizer import OFFICIAL_TOKENIZERS, Tokenizer, TokenizerConfig
from vapi_core.models.perceptual import LPIPS, FeatureDistance
from vapi_core.randomness import seed_torch, stream

PROFILES = Path("profiles")
CLASSES = 10
TOKENIZER_FIELDS = (
    "codebook_size",
    "codebook_dim",
    "base_channels",
    "encoder_multipliers",
    "decoder_multipliers",
    "res_blocks",
    "z_channels",
    "norm_groups",
)


@dataclass(frozen=True)
class Setting:
    """What is measured: shapes from a profile, or official ones, and sizes."""

    generator: GeneratorConfig
    tokenizer: TokenizerConfig
    method: VaPiConfig
    lpips: bool
    image_size: int
    images: int  # of a step or of a batch of samples
    guidance_scale: float
    device: torch.device
    dtype: torch.dtype  # of the policy's passes: bfloat16 on a GPU

    def describe(self) -> dict[str, Any]:
        g = self.generator
        return {
            "generator": f"{g.dim} wide, {g.layers} layers, {g.heads} heads, {g.codebook_size} codes",
            "parameters": count_parameters(g),
            "tokens": g.length,
            "image_size": self.image_size,
            "images": self.images,
            "group_size": self.method.group_size,
            "noise_ratio": self.method.noise_ratio,
            "regularizer": self.method.regularizer,
            "perceptual": "LPIPS's VGG16" if self.lpips else "small classifier",
            "dtype": str(self.dtype).removeprefix("torch."),
        }


def count_parameters(config: GeneratorConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Generator(config).parameters())


def read_profile(name: str) -> dict[str, Any]:
    """All of a profile, unchecked: `pipelines.config` checks it, but needs more than a bare machine has.

    Raises:
        FileError: there is no such profile.
    """
    path = PROFILES / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise FileError(path, "there is no such profile.", f"There are: {names}.")
    base, profile = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in (PROFILES / "base.yaml", path))
    return overlay(base, profile)


def overlay(base: Any, profile: Any) -> Any:
    """What a profile changes put over the base, mapping by mapping."""
    if not isinstance(base, dict) or not isinstance(profile, dict):
        return profile
    return base | {key: overlay(base.get(key), value) for key, value in profile.items()}


def setting(options: argparse.Namespace) -> Setting:
    """What the command line asks for; `--quick` makes everything small.

    Raises:
        FileError: there is no such profile.
        ParameterError: nothing says how many images are sampled at once.
    """
    profile = read_profile(options.profile)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    t, g, a = profile["tokenizer"], profile["generator"], profile["align"]
    fields = {n: tuple(t[n]) if isinstance(t[n], list) else t[n] for n in TOKENIZER_FIELDS}
    tokenizer = TokenizerConfig(**fields)
    if options.tokenizer:
        tokenizer = OFFICIAL_TOKENIZERS[options.tokenizer]
    image_size = options.image_size or profile["subset"]["image_size"]
    own = profile["sample"]["batch_size"] if options.benchmark == "sample" else a["micro_batch_size"] or a["batch_size"]
    images = options.images or own
    if images is None:
        raise ParameterError("--images", f"profile {options.profile} leaves it to memory; give a number.")
    group_size = options.group_size or a["group_size"]
    if options.quick:
        image_size, images, group_size = min(image_size, 8 * tokenizer.downsample), min(images, 3), min(group_size, 4)
    shape: dict[str, Any] = {n: g[n] for n in ("dim", "layers", "heads", "kv_heads", "multiple_of")}
    if options.generator:
        dim, layers, heads = OFFICIAL_GENERATORS[options.generator]
        shape = {"dim": dim, "layers": layers, "heads": heads}
    generator = GeneratorConfig(
        grid=image_size // tokenizer.downsample, codebook_size=tokenizer.codebook_size, classes=CLASSES, **shape
    )
    method = VaPiConfig(
        group_size=group_size,
        noise_ratio=float(a["noise_ratio"]),
        regularizer=a["regularizer"] if a["regularizer"] != "kl" else "ce",
        regularizer_weight=float(a["regularizer_weight"]),
        reward=RewardWeights(mse=1.0, perceptual=1.0),
    )
    lpips = a["reward_network"] == "lpips" or bool(options.tokenizer)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    scale = float(max(profile["sample"]["guidance_scales"]))
    return Setting(generator, tokenizer, method, lpips, image_size, images, scale, device, dtype)


def build_generator(s: Setting) -> Generator:
    """The policy, without dropout; its output layer is random, so that not all codes are alike."""
    seed_torch(0, "benchmark generator")
    with torch.device(s.device):
        generator = Generator(s.generator)
        nn.init.normal_(generator.output.weight, std=0.02)
    return generator.eval()


def build_tokenizer(s: Setting) -> Tokenizer:
    seed_torch(0, "benchmark tokenizer")
    return Tokenizer(s.tokenizer).to(s.device).eval().requires_grad_(False)


def build_perceptual(s: Setting) -> PerceptualDistance:
    seed_torch(0, "benchmark perceptual network")
    network = LPIPS() if s.lpips else FeatureDistance(PlainClassifier(CLASSES))
    return network.to(s.device)


def random_images(s: Setting, count: int) -> np.ndarray:
    """Smooth noise, uint8 [N, H, W, 3]."""
    coarse = stream(0, "benchmark images").integers(0, 256, (count, s.image_size // 4, s.image_size // 4, 3), np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2)


def build_data(s: Setting, tokenizer: Tokenizer) -> AlignmentData:
    """Images of one step with their tokens, cached as the stage `tokenize` leaves them."""
    images = random_images(s, s.images)
    tokens = encode_images(tokenizer, images, s.device, 1)
    return AlignmentData(tokens.astype(np.uint16), np.arange(s.images) % CLASSES, images, s.device)
