"""What a training has to do: a classifier, the tokenizer, the generator, or an alignment.

It is counted over one micro-batch and taken as often as there are. Layers are counted as `work.of_layers` says.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from pipelines.config.params import Params, grid_side
from pipelines.config.variant import Alignment
from pipelines.estimates import models
from pipelines.estimates.drawing import CountedParams, decode_steps, decoding, encoding
from pipelines.estimates.sizes import parameters
from pipelines.estimates.work import Work, counted, measure, of_layers, operation
from vapi_core.models.classifier import ARCHITECTURES
from vapi_core.randomness import stream
from vapi_core.training.classification import augment
from vapi_core.training.loop import MicroBatch, OptimizationConfig, parts_of
from vapi_core.training.pretraining import GeneratorObjective, TokenizerObjective

UCI_DIGITS, UCI_SIDE = 1797, 8  # images of scikit-learn's digits
COUNTED_LOGITS = 2**24  # of a micro-batch at most: some methods draw as many random numbers, which are real


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


def classifier_training(params: Params, role: str) -> Work:
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


def tokenizer_training(params: Params) -> Work:
    p, side = params.tokenizer, params.subset.image_size
    held_out = params.subset.splits[params.score.reference_splits[0]]
    checking = encoding(params, held_out) + decoding(params, held_out, side)
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


def generator_training(params: Params) -> Work:
    p, checked = params.generator, params.subset.splits[params.score.reference_splits[0]]
    if p.training is not None:
        checked += params.subset.splits["train"]
    size = min(64, counted_at_once(params, 64))

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


def counted_at_once(params: Params, size: int) -> int:
    """How many images of a micro-batch are counted; the others are more of the same."""
    return max(1, min(size, COUNTED_LOGITS // (grid_side(params) ** 2 * params.tokenizer.codebook_size)))


def alike(alignment: Alignment) -> Alignment:
    """An alignment of the same work, with all at rest that changes none: what is counted for one serves for others."""
    config = alignment.config
    at_rest = {"noise_ratio": 0.0, "clip_epsilon": 0.2, "advantage_clamp": 5.0}
    at_rest = {name: value for name, value in at_rest.items() if hasattr(config, name)}
    if getattr(config, "regularizer_weight", 0.0):
        at_rest["regularizer_weight"] = 1.0
    optimization = OptimizationConfig(learning_rate=1e-6, steps=1, batch_size=1)
    return replace(alignment, optimization=optimization, config=replace(config, **at_rest), keep_every=0, threads=None)


@lru_cache(maxsize=256)
def alignment_work(key: CountedParams, alignment: Alignment, size: int) -> Work:
    """Forward, rollouts, rewards and backward of a micro-batch of so many images. A KL that is only logged, every some
    steps, is left out: it is less than one in a hundred."""
    params = key.params
    some = counted_at_once(params, size)

    def of(layers: int) -> Work:
        def build() -> Work:
            policy, objective = models.open_objective(params, alignment, layers)
            rows = models.without_steps(policy)
            work = measure(lambda: [part.loss()[0].backward() for part in parts_of(objective, micro_batch(some))])
            return work + decode_steps(params, layers, rows[0], None) * len(rows) if rows else work

        return counted(build)

    return resized(of_layers(of, params.generator.layers), size / some)
