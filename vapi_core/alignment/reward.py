"""The reconstruction reward of VA-π (paper, §1 item 4): how close the decoded rollout comes to the training image.

R = -(sum of weighted terms). A term is a function of a `Comparison` and a line of `RewardWeights`. `mse` and
`perceptual` are the paper's; `l1` and `embedding` (one minus the cosine between code vectors and the encoder's output)
are further terms of the authors' trainer. A term also has error maps, whose means add up to it: credit per token
(`credit.py`) takes their means over each token's cell.
Departures: features of the reference are computed once per image, not once per rollout, and may be kept for the next
time the image comes; and on a GPU decoder and perceptual network run in bfloat16, images are compared in float32.
Rollouts are decoded and compared some at a time (`vapi_core.memory.part_bytes`).
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vapi_core.alignment.credit import cell_means
from vapi_core.alignment.method import Need, Setting
from vapi_core.limits import Bounds, Checked, Weight
from vapi_core.memory import how_many, part_bytes
from vapi_core.models.llamagen.tokenizer import Tokenizer, TokenizerConfig, decode_bytes
from vapi_core.models.perceptual import FeatureDistance, load_lpips


class PerceptualDistance(Protocol):
    """A distance between images that is taken between their features, so that features can be shared."""

    def features(self, images: Tensor) -> list[Tensor]:
        """Features [N, C, H, W] of each stage, of images [N, 3, H, W] in [-1, 1]."""
        ...

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Distances [...] of features [..., C, H, W] whose leading dimensions broadcast."""
        ...

    def maps(self, a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
        """Error maps [..., H, W] of each stage; the sum of their means is the distance."""
        ...


class Reference:
    """What rollouts of images [B, 3, H, W] are compared with; each thing is computed when a term first asks for it."""

    def __init__(self, reward: "ReconstructionReward", images: Tensor, items: np.ndarray | None):
        self._reward, self.images, self._items = reward, images, items

    @cached_property
    def features(self) -> list[Tensor]:
        """Perceptual features [B, C, H, W] of each stage."""
        reward = self._reward
        assert reward.perceptual is not None
        if reward.references is not None and self._items is not None:
            return reward.references(self._items, self.images)
        return reward.perceptual.features(self.images)

    @cached_property
    def embedded(self) -> Tensor:
        """The encoder's outputs [B, D]."""
        return self._reward.tokenizer.embed(self.images).flatten(1)


class Comparison:
    """Some rollouts of each image, decoded, beside their reference: what a term of the reward is made from."""

    def __init__(self, decoded: Tensor, codes: Tensor, reference: Reference, perceptual: PerceptualDistance | None):
        """
        Args:
            decoded: images [B * G, 3, H, W] of all rollouts.
            codes: their code vectors [B * G, D, h, w].
        """
        self.decoded, self.codes, self.reference, self.perceptual = decoded, codes, reference, perceptual

    def grouped(self, values: Tensor) -> Tensor:
        """Values [B * G, ...] of all rollouts as [B, G, ...]."""
        return values.unflatten(0, (len(self.reference.images), -1))

    @cached_property
    def difference(self) -> Tensor:
        """Decoded image minus reference [B, G, 3, H, W]."""
        return self.grouped(self.decoded) - self.reference.images[:, None]

    @property
    def features(self) -> tuple[list[Tensor], list[Tensor]]:
        """Perceptual features of each stage: [B, G, C, H, W] of decoded images, [B, 1, C, H, W] of the reference."""
        assert self.perceptual is not None
        reference = [features[:, None] for features in self.reference.features]
        return [self.grouped(features) for features in self.perceptual.features(self.decoded)], reference


def squared_error(comparison: Comparison) -> Tensor:
    return comparison.difference.square().mean((2, 3, 4))


def absolute_error(comparison: Comparison) -> Tensor:
    return comparison.difference.abs().mean((2, 3, 4))


def perceptual_distance(comparison: Comparison) -> Tensor:
    assert comparison.perceptual is not None
    return comparison.perceptual.distance(*comparison.features)


def embedding_distance(comparison: Comparison) -> Tensor:
    codes = comparison.grouped(comparison.codes).flatten(2)
    return 1 - F.cosine_similarity(codes, comparison.reference.embedded[:, None], dim=-1)


def squared_error_maps(comparison: Comparison) -> list[Tensor]:
    return [comparison.difference.square().mean(2)]


def absolute_error_maps(comparison: Comparison) -> list[Tensor]:
    return [comparison.difference.abs().mean(2)]


def perceptual_maps(comparison: Comparison) -> list[Tensor]:
    assert comparison.perceptual is not None
    return comparison.perceptual.maps(*comparison.features)


def embedding_maps(comparison: Comparison) -> list[Tensor]:
    """The cosine is a sum over cells: each has the product of its vectors, divided by the norms of the whole grid."""
    codes = comparison.grouped(comparison.codes)  # [B, G, D, h, w]
    embedded = comparison.reference.embedded[:, None]  # [B, 1, D * h * w]
    norms = codes.flatten(2).norm(dim=-1).clamp(min=1e-8) * embedded.norm(dim=-1).clamp(min=1e-8)  # [B, G]
    products = (codes * embedded.unflatten(-1, codes.shape[2:])).sum(2)  # [B, G, h, w]
    return [1 - products * (products[0, 0].numel() / norms[..., None, None])]


Values = Callable[[Comparison], Tensor]  # [B, G], or [B, G, T] by cells
Maps = Callable[[Comparison], list[Tensor]]  # each [B, G, H, W], at any resolution


def term(function: Values, weight: float, maps: Maps | None = None) -> Any:
    """A term's field in `RewardWeights`.

    Args:
        function: computes the term.
        weight: its default.
        maps: error maps whose means add up to the term; without them it allows no credit per token.
    """
    return field(default=weight, metadata={"function": function, "maps": maps})


@dataclass(frozen=True)
class RewardWeights(Checked):
    """All terms, each with its weight; 0 leaves it out. Paper: mse 1, perceptual (λ_p) 1."""

    mse: Weight = term(squared_error, 1.0, squared_error_maps)
    l1: Weight = term(absolute_error, 0.0, absolute_error_maps)
    perceptual: Weight = term(perceptual_distance, 1.0, perceptual_maps)
    embedding: Weight = term(embedding_distance, 0.0, embedding_maps)

    @property
    def functions(self) -> dict[str, Values]:
        """The terms that have a weight, by name."""
        return {f.name: f.metadata["function"] for f in fields(self) if getattr(self, f.name)}

    @property
    def maps(self) -> dict[str, Maps | None]:
        """Their error maps, None of a term that has none."""
        return {f.name: f.metadata["maps"] for f in fields(self) if getattr(self, f.name)}

    @property
    def terms(self) -> list[str]:
        """Names of the terms that have a weight."""
        return list(self.functions)


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig(Checked):
    """What methods share that compare decoded images with the reference: VA-π's reward, the losses of its rivals."""

    reward: RewardWeights = field(default_factory=RewardWeights)
    reward_network: Literal["lpips", "reward-classifier"] = "lpips"  # behind the perceptual term
    reward_first_stage: Annotated[int, Bounds(least=0, most=3)] = 0  # of the classifier's; earlier ones do not count
    lpips_checkpoint: str | None = None  # a folder; None: torch's cache


def perceptual_network(config: ReconstructionConfig) -> frozenset[Need]:
    """The network that the perceptual term needs, if there is such a term."""
    return frozenset({config.reward_network} if config.reward.perceptual else ())


def open_perceptual(config: ReconstructionConfig, setting: Setting) -> PerceptualDistance | None:
    """The frozen network behind the perceptual term, None if there is no such term."""
    if not config.reward.perceptual:
        return None
    if config.reward_network == "lpips":
        return load_lpips(config.lpips_checkpoint).to(setting.device)
    return FeatureDistance(setting.networks.reward_classifier(), config.reward_first_stage).to(setting.device)


def rollout_bytes(config: TokenizerConfig, pixels: int, itemsize: int) -> int:
    """About what decoding one rollout to `pixels` pixels and comparing it holds at once, in bytes.

    Beside the decoder's, the float32 differences of 64 features a pixel, four times.
    """
    return decode_bytes(config, pixels, itemsize) + 4 * 4 * 64 * pixels


def compared_bytes(pixels: int) -> int:
    """About what a perceptual network keeps of one image of `pixels` pixels, compared with a gradient, in bytes.

    LPIPS's VGG16: 270 features a pixel of all layers, as a convolution and its ReLU leave them, and 122 of its slices
    in float32, normalised and compared. Smaller networks keep less.
    """
    return pixels * (270 * 4 + 122 * 4 * 5)


def plan_chunks(images: int, group_size: int, rollouts: int) -> tuple[int, int]:
    """How many images at a time, and how many of each one's rollouts, so that no more than `rollouts` are decoded."""
    return min(images, max(1, rollouts // group_size)), min(group_size, rollouts)


def cell_errors(maps: Maps, comparison: Comparison) -> Tensor:
    """A term by cells [B, G, T], whose mean over T is the term."""
    grid = (comparison.codes.shape[2], comparison.codes.shape[3])
    return torch.stack([cell_means(error_map, grid) for error_map in maps(comparison)]).sum(0)


class ReferenceFeatures:
    """Perceptual features of reference images, kept by item up to a number of bytes.

    An image whose features are kept or may be is computed alone: the result must not depend on the batch it comes in.
    """

    def __init__(self, perceptual: PerceptualDistance, limit: int):
        self._perceptual, self._left = perceptual, limit
        self._kept: dict[int, list[Tensor]] = {}

    def __call__(self, items: np.ndarray, images: Tensor) -> list[Tensor]:
        """Features [B, C, H, W] of each stage, of items [B] and their images [B, 3, H, W]."""
        rows = [self._one(int(item), images[i : i + 1]) for i, item in enumerate(items)]
        return [torch.cat(stage) for stage in zip(*rows, strict=True)]

    def _one(self, item: int, image: Tensor) -> list[Tensor]:
        if item in self._kept:
            return self._kept[item]
        features = self._perceptual.features(image)
        size = sum(f.nbytes for f in features)
        if size <= self._left:
            self._kept[item] = features
            self._left -= size
        return features


class ReconstructionReward:
    """Decodes rollouts with the frozen tokenizer and compares them with the images they came from."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        weights: RewardWeights,
        perceptual: PerceptualDistance | None = None,
        dtype: torch.dtype | None = None,
        kept_features: int = 0,
        rollouts_at_a_time: int | None = None,
        part_bytes: int | None = None,
    ):
        """
        Args:
            dtype: of decoder and perceptual network; None: bfloat16 on a GPU, else the tokenizer's own.
            kept_features: bytes of perceptual features of reference images to keep, for images that come again.
            rollouts_at_a_time: None: as many as fit into a part.
            part_bytes: what a part may hold; None: `vapi_core.memory.part_bytes`.
        """
        assert perceptual is not None or weights.perceptual == 0
        self.tokenizer, self.weights = tokenizer, weights
        self.rollouts_at_a_time, self.part_bytes = rollouts_at_a_time, part_bytes
        device, own = tokenizer.post_quant_conv.weight.device, tokenizer.post_quant_conv.weight.dtype
        self.dtype = dtype or (torch.bfloat16 if device.type == "cuda" else own)
        self.decoder = tokenizer
        if self.dtype != own:
            self.decoder = copy.deepcopy(tokenizer).to(self.dtype)
            if isinstance(perceptual, nn.Module):
                perceptual = copy.deepcopy(perceptual).to(self.dtype)
        self.perceptual = perceptual
        self.references = ReferenceFeatures(perceptual, kept_features) if perceptual and kept_features else None

    @torch.no_grad()
    def __call__(
        self, rollouts: Tensor, images: Tensor, items: np.ndarray | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Rewards [B, G] of rollouts [B, G, T] for images [B, 3, H, W], and the unweighted terms, each [B, G].

        `items` [B] says which images these are, if features are to be kept.
        """
        if not self.weights.terms:  # nothing is rewarded: no rollout is better than another
            return images.new_zeros(rollouts.shape[:2]), {}
        return self._weighted(self.weights.functions, rollouts, images, items)

    @torch.no_grad()
    def per_token(
        self, rollouts: Tensor, images: Tensor, items: np.ndarray | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Rewards [B, G, T] of the cells of all tokens, whose mean over T is the reward, and the terms as above.

        Every term that has a weight must have error maps.
        """
        if not self.weights.terms:
            return images.new_zeros(rollouts.shape), {}
        functions = {name: partial(cell_errors, maps) for name, maps in self.weights.maps.items() if maps is not None}
        assert list(functions) == self.weights.terms
        rewards, terms = self._weighted(functions, rollouts, images, items)
        return rewards, {name: value.mean(-1) for name, value in terms.items()}

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of the tokens of images [B, 3, H, W]."""
        factor = self.tokenizer.config.downsample
        return images.shape[2] // factor, images.shape[3] // factor

    def _weighted(
        self, functions: Mapping[str, Values], rollouts: Tensor, images: Tensor, items: np.ndarray | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Rewards and unweighted terms of all rollouts, shaped as the functions' values."""
        # the types are chosen here; the caller's autocast would take the decoder's group norms to float32 on a GPU
        with torch.autocast(images.device.type, enabled=False):
            terms = self._terms_of_all(functions, rollouts, images, items)
        total = sum(getattr(self.weights, name) * value for name, value in terms.items())
        return -torch.as_tensor(total), terms

    def _terms_of_all(
        self, functions: Mapping[str, Values], rollouts: Tensor, images: Tensor, items: np.ndarray | None
    ) -> dict[str, Tensor]:
        """Unweighted terms of rollouts [B, G, T], some images and some rollouts at a time."""
        b, g, _ = rollouts.shape
        some_images, some_rollouts = plan_chunks(b, g, self._rollouts_at_a_time(images))
        rows: list[dict[str, Tensor]] = []
        for i in range(0, b, some_images):
            chunk = slice(i, i + some_images)
            reference = Reference(self, images[chunk], None if items is None else items[chunk])
            some = (rollouts[chunk, j : j + some_rollouts] for j in range(0, g, some_rollouts))
            parts = [self._terms(functions, tokens, reference) for tokens in some]
            rows.append({name: torch.cat([part[name] for part in parts], 1) for name in parts[0]})
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _rollouts_at_a_time(self, images: Tensor) -> int:
        if self.rollouts_at_a_time is not None:
            return self.rollouts_at_a_time
        each = rollout_bytes(self.tokenizer.config, images.shape[2] * images.shape[3], self.dtype.itemsize)
        return how_many(self.part_bytes or part_bytes(images.device), each, 2**20, share=1.0)

    def _terms(self, functions: Mapping[str, Values], rollouts: Tensor, reference: Reference) -> dict[str, Tensor]:
        """Unweighted terms of rollouts [B, G, T] decoded at once."""
        images = reference.images
        codes = self.tokenizer.quantize.look_up(rollouts.flatten(0, 1), self.grid(images))
        decoded = self.decoder.decode_codes(codes.to(self.dtype)).to(images.dtype)
        comparison = Comparison(decoded, codes, reference, self.perceptual)
        return {name: function(comparison) for name, function in functions.items()}
