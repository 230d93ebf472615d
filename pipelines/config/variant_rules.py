"""What variants need of the other parameters and of each other. As in `config.rules`, all problems are told."""

from collections.abc import Iterator

from pipelines.config.params import Params
from pipelines.config.rules import TWICE, Problem, batch_problems, repeats
from pipelines.config.variant import BASE, Variant, all_variants, find_variant, key_of
from vapi_core.alignment.method import Need
from vapi_core.sampling.sampler import SamplingConfig

# network -> the extractor that it also is: what rewards must not score
EXTRACTOR_OF: dict[Need, str] = {"reward-classifier": "reward-classifier"}


def broken_rules(params: Params) -> list[Problem]:
    """Every rule of variants that does not hold.

    Raises:
        ParameterError: settings of a variant are wrong by themselves.
    """
    variants = all_variants(params)
    return [*_names(params), *_controls(params), *(p for v in variants for p in _variant(v, params))]


def _names(p: Params) -> Iterator[Problem]:
    for name in p.variants.keys() & p.controls.keys():
        yield f"controls.{name}", "a variant has this name too."
    if BASE not in p.controls:
        yield f"controls.{BASE}", "the base itself is needed: all tables compare with it."
    elif p.controls[BASE].temperatures[0] != p.sample.temperature:
        problem = f"its first temperature must be sample.temperature, {p.sample.temperature}: that is the base itself."
        yield f"controls.{BASE}.temperatures", problem
    rows = {v.table for v in p.variants.values()} | {c.table for c in p.controls.values()}
    for table in p.tables:
        if table not in rows:
            yield "tables", f"no variant and no control is a row of '{table}'."
    if repeats(p.tables):
        yield "tables", TWICE
    for name, variant in p.variants.items():
        if variant.guidance_scales is not None and repeats(variant.guidance_scales):
            yield f"variants.{name}.guidance_scales", TWICE


def _controls(p: Params) -> Iterator[Problem]:
    drawn: dict[SamplingConfig, str] = {}
    for name in p.controls:
        if name in p.variants:  # which is told above
            continue
        for config in find_variant(p, name).samplings:
            if config in drawn:
                drawing = f"temperature {config.temperature} with guidance {config.guidance_scale}"
                problem = f"{drawing} is drawn by '{drawn[config]}' already."
                yield f"controls.{name}.temperatures", problem
            drawn[config] = name


def _variant(variant: Variant, p: Params) -> Iterator[Problem]:
    """The rules of one variant's method, and the networks that it needs."""
    if variant.alignment is None:
        return
    alignment, changes = variant.alignment, p.variants[variant.name].align
    optimization, networks = alignment.optimization, alignment.method.needs(alignment.config)
    for name, problem in alignment.method.problems(alignment.config):
        yield key_of(variant.name, name, changes), f"{problem} (variant {variant.name})"
    for key, problem in batch_problems(
        "align", optimization.batch_size, optimization.micro_batch_size, p.launch.world_size
    ):
        own = key.startswith("align.")
        yield (key_of(variant.name, key.removeprefix("align."), changes) if own else key), problem
    if p.launch.strategy == "fsdp" and p.launch.world_size > 1 and alignment.images_every:
        problem = "images are drawn token by token, for which whole weights are needed: 0, or launch.strategy ddp."
        yield key_of(variant.name, "images_every", changes), problem
    if "reward-classifier" in networks and p.classifiers.reward is None:
        yield "classifiers.reward", f"needed by the variant {variant.name}."
    for network in networks:
        if EXTRACTOR_OF.get(network) in p.score.extractors:
            problem = f"'{network}' rewards the variant {variant.name}, so it must not score."
            yield "score.extractors", problem
    if p.task == "t2i" and "class-labels" in networks:
        problem = f"{variant.name} learns from classes, which captions do not have."
        yield f"variants.{variant.name}.method", problem
