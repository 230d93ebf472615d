"""What every stage of the DAG has to do, from the params alone.

A training is counted over one micro-batch and taken as often as there are; a decode step over the first and the last
token, between which it grows evenly. So are layers: see `work.of_layers`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pipelines.config.params import Params, grid_side
from pipelines.config.variant import Alignment, Variant, all_variants
from pipelines.estimates import models
from pipelines.estimates.sizes import features, images_of_set, in_order, parameters, reference_images
from pipelines.estimates.work import Work, counted, measure, of_layers, operation
from vapi_core.data.images import images_of_a_pass, resize_bicubic
from vapi_core.models.classifier import ARCHITECTURES
from vapi_core.randomness import stream
from vapi_core.sampling.sampler import SamplingConfig, batch_in_memory, filtered_probabilities, guide, invert_cdf
from vapi_core.scoring.features import PixelScaling
from vapi_core.training.classification import augment
from vapi_core.training.loop import MicroBatch, OptimizationConfig, parts_of
from vapi_core.training.pretraining import GeneratorObjective, TokenizerObjective

NOTHING = Work()
UCI_DIGITS, UCI_SIDE = 1797, 8  # images of scikit-learn's digits
UCI_SECONDS = 3.0  # until scikit-learn has them; measured, see docs/estimate.md
COUNTED_LOGITS = 2**24  # of a micro-batch at most: some methods draw as many random numbers, which are real
ENCODERS = {"minilm": 11e6, "flan-t5-xl": 1.2e9}  # parameters of a text encoder without its embeddings
MASK2FORMER = 2 * 313e9  # FLOPs of an image: Cheng et al. 2022, arXiv:2112.01527, Swin-S, instance segmentation
TABLE_SECONDS = 4.0  # of a page with its tests and figures; measured for the default profile, see docs/estimate.md


@dataclass(frozen=True)
class Cost:
    """What one stage does."""

    stage: str  # as in dvc.yaml
    policy: Work = field(default_factory=Work)  # under autocast or in weights of `launch.dtype`
    images: Work = field(default_factory=Work)  # of networks of images, in float32: convolutions nearly all
    host: Work = field(default_factory=Work)  # by numpy
    photographs: int = 0  # that are read from files
    seconds: float = 0.0  # that no parameter changes
    shared: bool = False  # whether `launch.processes` share the work
    threads: int | None = None  # of a CPU; None: all that there are


def costs(params: Params, memory: float) -> list[Cost]:
    """All stages in the order of the graph.

    Args:
        memory: bytes of the device, which say how many images are drawn at once where no parameter does.
    """
    roles = [role for role in ("reward", "scorer", "uci") if getattr(params.classifiers, role) is not None]
    return [
        Cost("subset", photographs=0 if params.subset.source in ("mnist", "scenes") else _images(params)),
        *(Cost(f"classifier@{r}", images=_classifier(params, r), seconds=UCI_SECONDS * (r == "uci")) for r in roles),
        Cost("tokenizer", images=_tokenizer(params)),
        Cost("tokenize", _captions(params), _encoding(params, _images(params)), shared=True),
        Cost("generator", images=_generator(params)),
        _references(params),
        *in_order(cost for variant in all_variants(params) for cost in costs_of(params, variant, memory)),
        *(Cost(name, seconds=TABLE_SECONDS) for name in ("report", *(f"table@{table}" for table in params.tables))),
    ]


def costs_of(params: Params, variant: Variant, memory: float) -> list[Cost]:
    """The stages of one variant, whether or not it is among those of the params."""
    first = [] if variant.alignment is None else [_alignment(params, variant)]
    return [*first, _sampling(params, variant, memory), _scoring(params, variant)]


def _images(params: Params) -> int:
    return sum(params.subset.splits.values())


# Training


def training(work_of: Callable[[int], Work], config: OptimizationConfig, trained: float, processes: int = 1) -> Work:
    """A training of so many parameters. `work_of` counts a micro-batch of so many images."""
    share = config.batch_size // processes
    size = min(config.micro_batch_size or share, share)
    step = work_of(size) * (config.batch_size / size) + optimizer_step(trained) * processes
    return step * config.steps


def optimizer_step(trained: float) -> Work:
    """AdamW over so many float32 parameters: it reads weight, gradient and two moments and writes three of them; the
    norm of the gradient, its clipping and the largest weight read and write 16 bytes more."""
    return operation(15 * trained, 28 * trained) + operation(3 * trained, 16 * trained)


def micro_batch(size: int, step: int = 1) -> MicroBatch:
    return MicroBatch(step, 0, np.zeros(size, np.int64))


def resized(work: Work, times: float) -> Work:
    """The same operations, each so many times as large."""
    return Work({(flops * times, size * times): count for (flops, size), count in work.operations.items()})


def _classifier(params: Params, role: str) -> Work:
    options = getattr(params.classifiers, role)
    count, side = params.subset.splits.get(getattr(options, "split", ""), 0), params.subset.image_size
    if role == "uci":
        count, side = UCI_DIGITS, UCI_SIDE

    def work_of(size: int) -> Work:
        def build() -> Work:
            network = ARCHITECTURES[role](models.DIGITS).train()
            images, labels = torch.zeros(size, 3, side, side), torch.zeros(size, dtype=torch.long)
            draws = stream(0, "classifier augmentation", 0)
            return measure(lambda: F.cross_entropy(network(augment(images, draws))[1], labels))

        return counted(build)

    steps = -(-options.epochs * count // options.batch_size)
    config = OptimizationConfig(learning_rate=1e-3, steps=max(1, steps), batch_size=options.batch_size)
    return training(work_of, config, 1e5)


def _tokenizer(params: Params) -> Work:
    p, side = params.tokenizer, params.subset.image_size
    held_out = params.subset.splits[params.score.reference_splits[0]]
    checking = _encoding(params, held_out) + decoding(params, held_out, side)
    if p.training is None:
        return checking

    def work_of(size: int) -> Work:
        def build() -> Work:
            images = models.training_data(params).images
            objective = TokenizerObjective(
                models.open_tokenizer(params), images, models.CPU, p.l1_weight, 0, p.seed, p.color_weight
            )
            return measure(lambda: objective(micro_batch(size)))

        return counted(build)

    return training(work_of, p.training, parameters(params).tokenizer) + checking


def _generator(params: Params) -> Work:
    p, checked = params.generator, params.subset.splits[params.score.reference_splits[0]]
    if p.training is not None:
        checked += params.subset.splits["train"]
    size = min(64, _at_once(params, 64))

    def evaluation(layers: int) -> Work:
        def build() -> Work:
            policy = models.open_policy(params, layers).eval().requires_grad_(False)
            prefix = torch.zeros(size, grid_side(params) ** 2 - 1, dtype=torch.long)
            return measure(lambda: policy(models.conditions(params, size), prefix).logsumexp(-1))

        return counted(build)

    checking = of_layers(evaluation, p.layers) * (checked / size)
    if p.training is None:
        return checking

    def work_of(size: int) -> Work:
        def of(layers: int) -> Work:
            def build() -> Work:
                objective = GeneratorObjective(models.open_policy(params, layers), models.training_data(params))
                return measure(lambda: objective(micro_batch(size)))

            return counted(build)

        return of_layers(of, p.layers)

    return training(work_of, p.training, parameters(params).generator) + checking


def _at_once(params: Params, size: int) -> int:
    """How many images of a micro-batch are counted; the others are more of the same."""
    return max(1, min(size, COUNTED_LOGITS // (grid_side(params) ** 2 * params.tokenizer.codebook_size)))


def _alignment(params: Params, variant: Variant) -> Cost:
    alignment = variant.alignment
    assert alignment is not None
    own, sizes = alignment.optimization, parameters(params)
    trained = sizes.decoder if alignment.method.trains == "tokenizer" else sizes.generator
    work = training(
        lambda size: alignment_work(_Shared(params), alike(alignment), size), own, trained, params.launch.world_size
    )
    return Cost(variant.stage("align"), work * len(variant.seeds), shared=True, threads=alignment.threads)


def alike(alignment: Alignment) -> Alignment:
    """An alignment of the same work, with all at rest that changes none: what is counted for one serves for others."""
    config = alignment.config
    at_rest = {"noise_ratio": 0.0, "clip_epsilon": 0.2, "advantage_clamp": 5.0}
    at_rest = {name: value for name, value in at_rest.items() if hasattr(config, name)}
    if getattr(config, "regularizer_weight", 0.0):
        at_rest["regularizer_weight"] = 1.0
    optimization = OptimizationConfig(learning_rate=1e-6, steps=1, batch_size=1)
    return replace(alignment, optimization=optimization, config=replace(config, **at_rest), keep_every=0, threads=None)


class _Shared:
    """Params as an argument of a cache. Two are one where models, images and scores are the same."""

    def __init__(self, params: Params):
        p = self.params = params
        self._key = repr((p.subset, p.captions, p.tokenizer, p.generator, p.sample, p.score, p.launch.dtype))
        self._key += repr(p.launch.activation_checkpointing)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shared) and other._key == self._key


@lru_cache(maxsize=256)
def alignment_work(shared: _Shared, alignment: Alignment, size: int) -> Work:
    """Forward, rollouts, rewards and backward of a micro-batch of so many images. A KL that is only logged, every some
    steps, is left out: it is less than one in a hundred."""
    params = shared.params
    some = _at_once(params, size)

    def of(layers: int) -> Work:
        def build() -> Work:
            policy, objective = models.open_objective(params, alignment, layers)
            rows = models.without_steps(policy)
            work = measure(lambda: [part.loss()[0].backward() for part in parts_of(objective, micro_batch(some))])
            return work + decode_steps(params, layers, rows[0], None) * len(rows) if rows else work

        return counted(build)

    return resized(of_layers(of, params.generator.layers), size / some)


def decode_steps(params: Params, layers: int, rows: int, draw: Callable[[torch.Tensor], None] | None) -> Work:
    """One decode step of so many rows, the mean of the first and the last; and what draws its tokens."""
    policy = models.open_policy(params, layers).eval().requires_grad_(False)
    cache, tokens = policy.new_cache(rows), torch.zeros(rows, dtype=torch.long)
    with torch.no_grad():
        logits = policy.prefill(models.conditions(params, rows), cache)
        if draw is not None:
            drawing = measure(lambda: draw(logits))
        first = measure(lambda: policy.decode_step(tokens, 1, cache))
        # a Janus's cache grows step by step: of no other position can one be had
        jumps = hasattr(cache, "store")
        last = measure(lambda: policy.decode_step(tokens, policy.config.length - 1, cache)) if jumps else first
    return (first + last) * 0.5 + (drawing if draw is not None else NOTHING)


# Images


def _encoding(params: Params, count: int) -> Work:
    """Tokens of so many images."""
    side = params.subset.image_size
    size = images_of_a_pass(side)

    def build() -> Work:
        tokenizer, images = models.open_tokenizer(params).eval(), torch.zeros(size, 3, side, side)
        with torch.no_grad():
            return measure(lambda: tokenizer.encode(images))

    return counted(build) * (count / size)


def decoding(params: Params, count: int, side: int) -> Work:
    """So many images of tokens, resized to a side."""
    size = images_of_a_pass(params.subset.image_size)

    def build() -> Work:
        tokenizer, tokens = models.open_tokenizer(params).eval(), torch.zeros(size, grid_side(params) ** 2).long()

        def decode() -> torch.Tensor:
            images = tokenizer.decode(tokens)
            return images if side == params.subset.image_size else resize_bicubic(images, side)

        with torch.no_grad():
            return measure(decode)

    return counted(build) * (count / size)


def _captions(params: Params) -> Work:
    """A text encoder over all captions, each as long as may be."""
    if params.captions is None or params.captions.encoder not in ENCODERS:
        return NOTHING
    weights = ENCODERS[params.captions.encoder]
    return operation(2 * weights * params.captions.tokens, 4 * weights / 32) * _images(params)


def _sampling(params: Params, variant: Variant, memory: float) -> Cost:
    count, side = images_of_set(params), params.sample.save_size or params.subset.image_size
    tokens, images = NOTHING, NOTHING
    for image_set in variant.sets:
        tokens = tokens + _tokens(_Shared(params), image_set.config, memory)
        images = images + _decoded(_Shared(params), count, side)
    return Cost(variant.stage("sample"), tokens, images, shared=True)


@lru_cache(maxsize=64)
def _decoded(shared: _Shared, count: int, side: int) -> Work:
    return decoding(shared.params, count, side)


@lru_cache(maxsize=64)
def _tokens(shared: _Shared, config: SamplingConfig, memory: float) -> Work:
    """The tokens of one set, drawn step by step in batches."""
    params, count = shared.params, images_of_set(shared.params)
    size = min(count, params.sample.batch_size or _batch(params, config.guidance_scale != 1.0, memory))
    length = grid_side(params) ** 2

    def of(layers: int) -> Work:
        return counted(lambda: _draw(params, config, layers, size, length))

    return of_layers(of, params.generator.layers) * (count / size)


def _batch(params: Params, guided: bool, memory: float) -> int:
    """How many images fit beside the generator in memory of so many bytes."""
    sizes: list[int] = []
    dtype = getattr(torch, params.launch.dtype)

    def build() -> Work:
        policy, tokenizer = models.open_policy(params, dtype=dtype), models.open_tokenizer(params)
        free = memory - sum(p.numel() * p.itemsize for p in policy.parameters())
        sizes.append(batch_in_memory(int(free), policy, tokenizer, guided))
        return NOTHING

    counted(build)
    return sizes[0]


def _draw(params: Params, config: SamplingConfig, layers: int, size: int, length: int) -> Work:
    """One batch of sequences: the prefill, then a step for every further token."""
    policy = models.open_policy(params, layers).eval().requires_grad_(False)
    rows = 2 * size if config.guidance_scale != 1.0 else size
    cache, uniforms = policy.new_cache(rows), torch.zeros(size, 1)

    def draw(logits: torch.Tensor) -> None:
        filtered = filtered_probabilities(
            guide(logits, config.guidance_scale, size), config.temperature, config.top_k, config.top_p
        )
        invert_cdf(filtered, uniforms)

    with torch.no_grad():
        prefill = measure(lambda: policy.prefill(models.conditions(params, rows), cache))
    return prefill + decode_steps(params, layers, rows, draw) * (length - 1)


# Scores


def _references(params: Params) -> Cost:
    p, side = params.score, params.subset.image_size
    held_out = params.subset.splits[p.reference_splits[0]]
    count = reference_images(params)
    work = decoding(params, held_out, side)
    for name in p.extractors:
        work = work + extraction(_Shared(params), name, side, count + held_out)
    return Cost("references", images=work, host=_statistics(params, held_out) * 2)


def _scoring(params: Params, variant: Variant) -> Cost:
    count, side = images_of_set(params), params.sample.save_size or params.subset.image_size
    device, host = NOTHING, NOTHING
    for name in params.score.extractors:
        device = device + extraction(_Shared(params), name, side, count)
        host = host + _fidelity(params, name, count)
    if params.score.geneval is not None and params.score.geneval.detector == "mask2former":
        device = device + operation(MASK2FORMER, 0) * count
    sets = len(variant.sets)
    return Cost(variant.stage("score"), images=device * sets, host=host * sets)


@lru_cache(maxsize=64)
def extraction(shared: _Shared, extractor: str, side: int, count: int) -> Work:
    """Features of so many images."""
    params = shared.params
    size = params.score.batch_size

    def build() -> Work:
        network: nn.Module
        images = torch.zeros(size, 3, side, side)
        if extractor.endswith("-classifier"):
            network = PixelScaling(ARCHITECTURES[extractor.removesuffix("-classifier")](models.DIGITS))
        elif extractor == "inception-v3-compat":
            from torchvision.models import inception_v3

            network = inception_v3(aux_logits=False, init_weights=False)
            images = torch.zeros(size, 3, 299, 299)
        else:
            import timm

            network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
            images = torch.zeros(size, 3, params.score.input_size, params.score.input_size)
        network.eval().requires_grad_(False)
        return measure(lambda: network(images))

    return counted(build) * (count / size)


def _statistics(params: Params, count: int) -> Work:
    """Mean and covariance of features in float64, and the eigenvalues of a product of two such."""
    work = NOTHING
    for name in params.score.extractors:
        dim = features(name)[0]
        work = work + operation(2 * 2 * count * dim**2, 8 * count * dim) + operation(2 * 25 * dim**3, 0)
    return work


def _fidelity(params: Params, extractor: str, count: int) -> Work:
    """FID, KID, precision and recall of one set under one extractor, in numpy and on the CPU."""
    dim, others, p = features(extractor)[0], reference_images(params), params.score
    own = operation(2 * 2 * count * dim**2, 8 * count * dim) + operation(2 * 25 * dim**3, 0)
    subset = min(p.kid_subset_size, count, others)
    kernels = operation(2 * 2 * subset**2 * dim, 8 * 6 * subset**2) * (3 * p.kid_subsets)
    pairs = count**2 + others**2 + 2 * count * others
    return own + kernels + operation(2 * pairs * dim, 4 * 8 * pairs)
