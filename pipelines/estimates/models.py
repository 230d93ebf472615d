"""The models and data of a profile as fake tensors: the shapes that its stages meet, and nothing in them.

To be called under `FakeTensorMode`. What stages learn only from their inputs is assumed here: how many classes a source
has, how long captions are. Networks whose weights come from elsewhere are stood in for by ones of the same work.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.config.params import Params, grid_side
from pipelines.config.variant import Alignment
from vapi_core.alignment.method import Setting
from vapi_core.data.batches import AlignmentData
from vapi_core.models.classifier import ARCHITECTURES
from vapi_core.models.janus.policy import USUAL_PROMPT, Janus, JanusConfig
from vapi_core.models.llamagen.generator import Generator
from vapi_core.models.llamagen.tokenizer import Tokenizer
from vapi_core.models.perceptual import LPIPS, VGG_SLICES
from vapi_core.models.policy import Captions, Condition, Conditions, Policy, Prompts
from vapi_core.training.loop import Objective

CPU = torch.device("cpu")
DIGITS, IMAGENET = 10, 1000  # classes
CAPTION_DIMS = {"minilm": 384, "flan-t5-xl": 2048}
JANUS_VOCABULARY, JANUS_FFN_SHARE = 102400, 2.75  # of text tokens; FFN width over width: 5632 over 2048
CLIP_TOWERS = {"clip_score": (24, 16, 1024), "hpsv2": (32, 16, 1280)}  # layers, heads, width of ViT-L/14 and ViT-H/14
CLIP_SIDE, CLIP_PATCH = 224, 14


def classes(params: Params) -> int:
    """How many classes images are of: ten digits, or those of ImageNet."""
    return DIGITS if params.subset.source in ("mnist", "scenes") else IMAGENET


def open_tokenizer(params: Params) -> Tokenizer:
    """In training mode; that of the digits is gray, as its stage finds out."""
    return Tokenizer(replace(params.tokenizer.config(), gray=params.subset.source == "mnist"))


def open_policy(params: Params, layers: int | None = None, dtype: torch.dtype = torch.float32) -> Policy:
    """The generator, or one of its kind with so many layers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # fake tensors cannot be cast in place afterwards
    try:
        return _open_policy(params, layers)
    finally:
        torch.set_default_dtype(before)


def _open_policy(params: Params, layers: int | None) -> Policy:
    shape = replace(params.generator.config(*_shape(params)), layers=layers or params.generator.layers)
    if params.generator.family == "janus":
        text = {
            "hidden_size": shape.dim,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads or shape.heads,
            "intermediate_size": int(JANUS_FFN_SHARE * shape.dim),
            "vocab_size": JANUS_VOCABULARY,
        }
        vq = {"projection_dim": shape.dim, "image_token_embed_dim": shape.dim, "num_embeddings": shape.codebook_size}
        return Janus(JanusConfig(shape.grid, shape.codebook_size, 0, text, vq))
    return Generator(shape)


def _shape(params: Params) -> tuple[int, int, int, int | None, int]:
    captions = params.captions
    dim = None if captions is None else CAPTION_DIMS.get(captions.encoder)
    tokens = 120 if captions is None else captions.tokens
    return grid_side(params), params.tokenizer.codebook_size, classes(params), dim, tokens


def without_steps(policy: Policy) -> list[int]:
    """Has a policy take no decode step, only note of how many rows each was to be: a sequence of them is long, and
    every one is like the one before. They are counted apart (`costs.decode_steps`)."""
    rows: list[int] = []

    def decode_step(tokens: Tensor, position: int, cache: Any) -> Tensor:
        rows.append(len(tokens))
        return torch.zeros(len(tokens), policy.config.codebook_size)

    policy.decode_step = decode_step  # type: ignore[method-assign]
    return rows


@dataclass(frozen=True)
class FakeConditions:
    """Captions or prompts of N images."""

    params: Params
    count: int

    def __len__(self) -> int:
        return self.count

    def batch(self, items: Any, device: torch.device) -> Condition:
        return conditions(self.params, len(items))


def conditions(params: Params, count: int) -> Condition:
    """Conditions of so many images."""
    captions = params.captions
    if captions is None:
        return torch.zeros(count, dtype=torch.long)
    if captions.encoder == "janus":
        length = min(captions.tokens, USUAL_PROMPT)
        return Prompts(torch.zeros(count, length, dtype=torch.long), torch.ones(count, length, dtype=torch.bool))
    mask = torch.ones(count, captions.tokens, dtype=torch.bool)
    features = torch.zeros(count, captions.tokens, CAPTION_DIMS[captions.encoder])
    return Captions(features.to(getattr(torch, captions.dtype)), mask)


def training_data(params: Params) -> AlignmentData:
    """The training split; its arrays hold one image."""
    count, side, length = params.subset.splits["train"], params.subset.image_size, grid_side(params) ** 2
    given: np.ndarray | Conditions = (
        np.zeros(count, np.int64) if params.captions is None else FakeConditions(params, count)
    )
    tokens = np.broadcast_to(np.zeros((1, length), np.int64), (count, length))
    images = np.broadcast_to(np.zeros((1, side, side, 3), np.uint8), (count, side, side, 3))
    return AlignmentData(tokens, given, images, CPU)


class StandIn(nn.Module):
    """A frozen network that stands where a reward classifier does, whose weights are nowhere."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def _apply(self, fn: Any, recurse: bool = True) -> "StandIn":
        return self  # fake tensors cannot be moved in place, nor need they

    def stages(self, images: Tensor) -> list[Tensor]:
        return self.network.stages(images)  # type: ignore[operator]

    def forward(self, images: Tensor) -> Any:
        return self.network(images)


class Vgg(nn.Module):
    """LPIPS's VGG16 as a network of stages."""

    def __init__(self) -> None:
        super().__init__()
        self.lpips = LPIPS()

    def stages(self, x: Tensor) -> list[Tensor]:
        maps = []
        for number in range(1, len(VGG_SLICES) + 1):
            x = F.max_pool2d(x, 2) if number > 1 else x
            for convolution in getattr(self.lpips.net, f"slice{number}").values():
                x = convolution(x).relu()
            maps.append(x)
        return maps


class TowerLayer(nn.Module):
    """A layer of a vision transformer, as far as it computes."""

    def __init__(self, heads: int, width: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:  # [B, S, width]
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class Judges(nn.Module):
    """The image towers of reward models."""

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.patches, self.layers = nn.ModuleList(), nn.ModuleList()
        for layers, heads, width in map(CLIP_TOWERS.__getitem__, names):
            self.patches.append(nn.Conv2d(3, width, CLIP_PATCH, CLIP_PATCH))
            self.layers.append(nn.Sequential(*(TowerLayer(heads, width) for _ in range(layers))))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        resized = F.interpolate(images, (CLIP_SIDE, CLIP_SIDE), mode="bicubic")
        features = []
        for patches, layers in zip(self.patches, self.layers, strict=True):
            features.append(layers(patches(resized).flatten(2).transpose(1, 2)).mean((1, 2)))
        scores = torch.stack(features, 1)  # [B, towers]
        return scores, scores


@dataclass(frozen=True)
class FakeNetworks:
    """Lends a method what it asks for; `layers` as in `open_policy`."""

    params: Params
    layers: int | None
    network: nn.Module

    def base(self) -> Policy:
        return open_policy(self.params, self.layers).eval().requires_grad_(False)

    def reward_classifier(self) -> nn.Module:
        return StandIn(self.network)

    def class_labels(self) -> Any:
        return np.zeros(self.params.subset.splits["train"], np.int64)

    def prompts(self, template: str) -> list[str]:
        return [template] * self.params.subset.splits["train"]


def open_objective(params: Params, alignment: Alignment, layers: int | None = None) -> tuple[Policy, Objective]:
    """The generator and the objective of an alignment. LPIPS and CLIP are stood in for by networks of their work in the
    place of the reward classifier, since nothing of them is here."""
    config, needs = alignment.config, alignment.method.needs(alignment.config)
    network: nn.Module = ARCHITECTURES["reward"](DIGITS)
    if "lpips" in needs:
        network, config = Vgg(), replace(config, reward_network="reward-classifier", reward_first_stage=0)
    if judges := [name for name in CLIP_TOWERS if name in set(needs)]:
        weights = replace(config.rewards, class_likelihood=1.0, clip_score=0.0, hpsv2=0.0)
        network, config = Judges(judges), replace(config, rewards=weights)
    policy, tokenizer = open_policy(params, layers), open_tokenizer(params).requires_grad_(False)
    policy.activation_checkpointing = params.launch.activation_checkpointing
    lent = FakeNetworks(params, layers, network)
    setting = Setting(policy, tokenizer, training_data(params), lent, alignment.optimization, 0, torch.float32)
    return policy, alignment.method.open(config, setting)
