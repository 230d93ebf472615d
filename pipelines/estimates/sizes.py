"""How much disk everything takes: outputs of stages, DVC's cache, what a stage needs while it runs, and assets."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pipelines.config.params import Params, grid_side
from pipelines.config.paths import ALIGNED, CLASSIFIERS, GENERATOR, REFERENCES, STAGES, SUBSET, TOKENIZER, TOKENS
from pipelines.config.variant import Variant, all_variants
from pipelines.estimates import models
from vapi_core.training.loop import OptimizationConfig

FLOAT = 4  # bytes of a weight: they are kept in float32
STATE = 12  # bytes a parameter of a resumable state: weight and AdamW's two moments (vapi_core.training.states)
STATES = 3  # states of one training at most, for a moment
GENEVAL_PROMPTS, SCENE_TASKS = 553, 6
CAPTION_TOKENS = 30  # of a caption, where it may have many more
CLASSIFIER = 2e6  # bytes of a small classifier at most
REFERENCE_BATCH = 10_000  # images of ADM's reference batch
# features and logits of an image
FEATURES = {"inception-v3-compat": (2048, 1008), "efficientnet-lite0": (1280, 1000), "uci-classifier": (64, 10)}


@dataclass(frozen=True)
class Parameters:
    """How many parameters the models have."""

    generator: float
    tokenizer: float
    decoder: float


def parameters(params: Params) -> Parameters:
    """How many parameters the models of a profile have, with their buffers, which are saved too."""
    p = params
    return _parameters(repr((p.generator, p.tokenizer, p.captions, p.subset.image_size, p.subset.source)), _Hidden(p))


@dataclass(frozen=True)
class _Hidden:
    """Params that ride along past a cache's key."""

    value: Params = field(hash=False, compare=False)


class _Empty(TorchFunctionMode):
    """Gives weights a shape and no content, and draws none. `torch.device("meta")` would do, but what is computed there
    loads seconds of libraries, and every stage asks."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            return func(*args, **kwargs | {"device": "meta"})
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_", "normalize"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@lru_cache(maxsize=16)
def _parameters(shape: str, params: _Hidden) -> Parameters:
    with _Empty():
        policy, tokenizer = models.open_policy(params.value), models.open_tokenizer(params.value)
    decoder = nn.ModuleList([tokenizer.decoder, tokenizer.post_quant_conv])
    return Parameters(*map(_count, (policy, tokenizer, decoder)))


def _count(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


def images_of_set(params: Params) -> int:
    """Images of one set."""
    prompts = params.subset.prompts
    if params.task == "c2i":
        return params.sample.count
    if isinstance(prompts, int):  # scenes, of which one task has ten prompts in all
        return params.sample.count * ((SCENE_TASKS - 1) * prompts + min(prompts, 10))
    return params.sample.count * GENEVAL_PROMPTS


@dataclass(frozen=True)
class Disk:
    """Bytes of one stage."""

    stage: str  # as in dvc.yaml
    output: float  # which DVC keeps
    working: float = 0.0  # beside it while the stage runs: resumable states
    kept: float = 0.0  # in the work folder, which may be emptied at any time: features of images
    place: Path | None = None  # of the output


def disks(params: Params) -> list[Disk]:
    """All stages that write more than a page, in the order of the graph."""
    sizes = parameters(params)
    roles = [role for role in ("reward", "scorer", "uci") if getattr(params.classifiers, role) is not None]
    return [
        Disk("subset", _subset(params), place=SUBSET),
        *(Disk(f"classifier@{role}", CLASSIFIER, place=CLASSIFIERS / role) for role in roles),
        Disk(
            "tokenizer", FLOAT * sizes.tokenizer, _states(params.tokenizer.training, sizes.tokenizer), place=TOKENIZER
        ),
        Disk("tokenize", _tokens(params), place=TOKENS),
        Disk(
            "generator", FLOAT * sizes.generator, _states(params.generator.training, sizes.generator), place=GENERATOR
        ),
        _references(params),
        *in_order(disk for variant in all_variants(params) for disk in disks_of(params, variant)),
    ]


def disks_of(params: Params, variant: Variant) -> list[Disk]:
    """The stages of one variant, whether or not it is among those of the params."""
    sets = len(variant.sets)
    return [
        *([] if variant.alignment is None else [_aligned(params, variant)]),
        Disk(variant.stage("sample"), sets * set_bytes(params), place=variant.samples),
        Disk(variant.stage("score"), 0.0, kept=sets * feature_bytes(params, images_of_set(params))),
    ]


class _Named(Protocol):
    @property
    def stage(self) -> str: ...


Stages = TypeVar("Stages", bound=_Named)


def in_order(stages: Iterable[Stages]) -> list[Stages]:
    """Stages of variants by their kind, as the graph has them: all alignments, then all drawing, then all scores."""
    return sorted(stages, key=lambda stage: STAGES.index(stage.stage.partition("@")[0].removesuffix("-control")))


def _subset(params: Params) -> float:
    return sum(params.subset.splits.values()) * 3.0 * params.subset.image_size**2


def _tokens(params: Params) -> float:
    images, captions = sum(params.subset.splits.values()), params.captions
    tokens = images * grid_side(params) ** 2 * (2.0 if params.tokenizer.codebook_size <= 2**16 else 4.0)
    if captions is None or captions.encoder not in models.CAPTION_DIMS:
        return tokens
    width = models.CAPTION_DIMS[captions.encoder] * (2 if captions.dtype == "float16" else 4)
    return tokens + images * min(captions.tokens, CAPTION_TOKENS) * width


def _references(params: Params) -> Disk:
    held_out = params.subset.splits[params.score.reference_splits[0]]
    images = held_out * 3.0 * params.subset.image_size**2
    count = reference_images(params)
    return Disk("references", feature_bytes(params, count), images, feature_bytes(params, count + held_out), REFERENCES)


def _aligned(params: Params, variant: Variant) -> Disk:
    alignment, sizes = variant.alignment, parameters(params)
    assert alignment is not None
    whole = sizes.tokenizer if alignment.method.trains == "tokenizer" else sizes.generator
    weights = FLOAT * whole * (len(variant.seeds) + len(alignment.kept_steps) * len(variant.seeds))
    trained = sizes.decoder if alignment.method.trains == "tokenizer" else sizes.generator
    return Disk(variant.stage("align"), weights, _states(alignment.optimization, trained), place=ALIGNED / variant.name)


def _states(training: OptimizationConfig | None, trained: float) -> float:
    """The resumable states of one training at most; there is one training at a time."""
    if training is None:
        return 0.0
    saved = (training.steps - 1) // training.checkpoint_every
    return min(STATES, saved) * STATE * trained


def reference_images(params: Params) -> int:
    """How many images samples are compared with."""
    if params.score.reference_batch is not None:
        return REFERENCE_BATCH
    return sum(params.subset.splits[split] for split in params.score.reference_splits)


def set_bytes(params: Params) -> float:
    """One image set: pixels and labels."""
    side = params.sample.save_size or params.subset.image_size
    return images_of_set(params) * (3.0 * side**2 + 8)


def feature_bytes(params: Params, count: int) -> float:
    """What all extractors say of so many images, in float32."""
    return sum(count * FLOAT * (dim + logits) for dim, logits in map(features, params.score.extractors))


def features(extractor: str) -> tuple[int, int]:
    """How many features and logits an extractor gives."""
    return FEATURES.get(extractor, (128, models.DIGITS))
