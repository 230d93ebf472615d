"""What every stage of the DAG has to do, from the params alone."""

from dataclasses import dataclass, field

from pipelines.config.params import Params
from pipelines.config.variant import Variant, all_variants
from pipelines.estimates.drawing import CountedParams, decoded, decoding, drawn_tokens, encoded_captions, encoding
from pipelines.estimates.scores import extraction, feature_statistics, fidelity
from pipelines.estimates.sizes import images_of_set, in_order, parameters, reference_images
from pipelines.estimates.trainings import (
    alignment_work,
    alike,
    classifier_training,
    generator_training,
    tokenizer_training,
    training,
)
from pipelines.estimates.work import NOTHING, Work, operation

UCI_SECONDS = 3.0  # until scikit-learn has its digits; measured, see docs/estimate.md
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
        *(
            Cost(f"classifier@{r}", images=classifier_training(params, r), seconds=UCI_SECONDS * (r == "uci"))
            for r in roles
        ),
        Cost("tokenizer", images=tokenizer_training(params)),
        Cost("tokenize", encoded_captions(params, _images(params)), encoding(params, _images(params)), shared=True),
        Cost("generator", images=generator_training(params)),
        _references(params),
        *in_order(cost for variant in all_variants(params) for cost in costs_of(params, variant, memory)),
        *(Cost(name, seconds=TABLE_SECONDS) for name in ("report", *(f"table@{table}" for table in params.tables))),
    ]


def costs_of(params: Params, variant: Variant, memory: float) -> list[Cost]:
    """The stages of one variant, whether or not it is among those of the params."""
    first = [] if variant.alignment is None else [_alignment(params, variant)]
    return [*first, _sampling(params, variant, memory), _scoring(params, variant)]


def _alignment(params: Params, variant: Variant) -> Cost:
    alignment = variant.alignment
    assert alignment is not None
    own, sizes = alignment.optimization, parameters(params)
    trained = sizes.decoder if alignment.method.trains == "tokenizer" else sizes.generator
    work = training(
        lambda size: alignment_work(CountedParams(params), alike(alignment), size),
        own,
        trained,
        params.launch.processes,
    )
    return Cost(variant.stage("align"), work * len(variant.seeds), shared=True, threads=alignment.threads)


def _sampling(params: Params, variant: Variant, memory: float) -> Cost:
    count, side = images_of_set(params), params.sample.save_size or params.subset.image_size
    tokens, images = NOTHING, NOTHING
    for image_set in variant.sets:
        tokens = tokens + drawn_tokens(CountedParams(params), image_set.config, memory)
        images = images + decoded(CountedParams(params), count, side)
    return Cost(variant.stage("sample"), tokens, images, shared=True)


def _references(params: Params) -> Cost:
    p, side = params.score, params.subset.image_size
    held_out = params.subset.splits[p.reference_splits[0]]
    count = reference_images(params)
    work = decoding(params, held_out, side)
    for name in p.extractors:
        work = work + extraction(CountedParams(params), name, side, count + held_out)
    return Cost("references", images=work, host=feature_statistics(params, held_out) * 2)


def _scoring(params: Params, variant: Variant) -> Cost:
    count, side = images_of_set(params), params.sample.save_size or params.subset.image_size
    device, host = NOTHING, NOTHING
    for name in params.score.extractors:
        device = device + extraction(CountedParams(params), name, side, count)
        host = host + fidelity(params, name, count)
    if params.score.geneval is not None and params.score.geneval.detector == "mask2former":
        device = device + operation(MASK2FORMER, 0) * count
    sets = len(variant.sets)
    return Cost(variant.stage("score"), images=device * sets, host=host * sets)


def _images(params: Params) -> int:
    return sum(params.subset.splits.values())
