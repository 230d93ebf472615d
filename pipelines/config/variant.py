"""Variants: named ways to have images drawn. Every row of every table is one, and so is every cell of a sweep.

A variant is either an alignment, a method and what it changes of the settings that all share (`align`), or a control:
the base as it is, drawn at some temperatures. It is trained with every seed of `align.seeds`, drawn with every setting,
and scored; its names in dvc.yaml are align@NAME, sample@NAME and score@NAME (of a control sample-control@NAME, ...).
"""

import dataclasses
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.config.params import AlignParams, Params, checked, decimal, problems_of, several
from pipelines.config.paths import ALIGNED, GENERATOR, SAMPLES, SCORES, TOKENIZER
from vapi_core.alignment.method import Method
from vapi_core.alignment.methods import METHODS
from vapi_core.alignment.va_pi import VaPiConfig
from vapi_core.errors import ParameterError
from vapi_core.limits import Count, CountOrNone
from vapi_core.sampling.sampler import SamplingConfig
from vapi_core.training.loop import OptimizationConfig

EXPERIMENT, RIVALS, SWEEP = "experiment", "rivals", "sweep"  # tables that are more than rows
BASE, SUBJECT, CONTINUED = "base", "va-pi", "cross-entropy"  # variants that every table is about
ABLATION = "ablation"  # tag of a run: cell, base or sweep
GRID = "grid.png"  # of an image set: its first images
STEPS = "steps"  # of an alignment's output: the folder of weights that it kept on its way


@dataclass(frozen=True)
class Alignment:
    """How a variant is trained: a method with all its settings."""

    name: str
    optimization: OptimizationConfig
    config: Any  # of the type METHODS[name].config
    keep_every: int = 0
    threads: int | None = None  # of its training; None: those of the stage
    images_every: int = 0  # steps between the pictures that its run shows; they are no part of what it comes to

    @property
    def method(self) -> Method:
        return METHODS[self.name]

    @property
    def settings(self) -> dict[str, Any]:
        """All that determines what a seed comes to, nested as in params.yaml."""
        return {"method": self.name, **dataclasses.asdict(self.optimization), **dataclasses.asdict(self.config)}

    @property
    def kept_steps(self) -> list[int]:
        """After which steps the weights are kept; none under a budget of seconds, which knows no steps."""
        if self.keep_every == 0 or self.optimization.seconds is not None:
            return []
        return list(range(self.keep_every, self.optimization.steps, self.keep_every))


@dataclass(frozen=True)
class ImageSet:
    """Images of one variant that are drawn with one seed and one setting."""

    variant: str
    seed: int  # of the alignment; added to `sample.seed` it names the streams of the images
    config: SamplingConfig
    samples: Path  # directory of all sets of the variant
    generator: Path
    tokenizer: Path = TOKENIZER
    steps: int | None = None  # after which the alignment's weights were kept; None: all of them

    @property
    def directory(self) -> Path:
        setting = f"t{decimal(self.config.temperature)}-g{decimal(self.config.guidance_scale)}"
        way = "" if self.steps is None else f"after-{self.steps}-"
        return self.samples / f"{way}{setting}-{self.seed}"


@dataclass(frozen=True)
class Variant:
    """One row of a table."""

    name: str
    table: str
    alignment: Alignment | None  # None: a control, the base as it is
    samplings: tuple[SamplingConfig, ...]  # each drawn with each seed; the first is the main one
    seeds: tuple[int, ...]

    def output(self, seed: int) -> Path:
        """Where the alignment with a seed is, or for a control the base."""
        return GENERATOR if self.alignment is None else ALIGNED / self.name / str(seed)

    def run_name(self, seed: int) -> str:
        """What MLflow calls the run of a seed: `ξ 0.5 · β 0.1 · ce · seed 4`. A row of a table has its name before."""
        parts = [] if self.table == SWEEP else [self.name]
        config = None if self.alignment is None else self.alignment.config
        if isinstance(config, VaPiConfig):
            weight = [] if config.regularizer == "none" else [f"β {config.regularizer_weight:g}"]
            parts += [f"ξ {config.noise_ratio:g}", *weight, config.regularizer]
            if sorted(config.reward.terms) != ["mse", "perceptual"]:  # the paper's
                parts.append("+".join(config.reward.terms) or "prior")
            if config.credit != "image":  # the paper's, too
                parts.append(f"credit {config.credit}")
        return " · ".join([*parts, f"seed {seed}"])

    @property
    def tags(self) -> dict[str, str]:
        """What MLflow knows the runs of its seeds by. ABLATION: what the dashboard of VA-π's settings shows."""
        tags = {"stage": "control" if self.alignment is None else "align", "variant": self.name, "table": self.table}
        if self.name == BASE or (self.alignment is not None and self.alignment.name == SUBJECT):
            tags[ABLATION] = "base" if self.alignment is None else "cell"
        return tags

    @property
    def scores(self) -> Path:
        """Directory of its scores."""
        return SCORES / self.table / self.name

    @property
    def samples(self) -> Path:
        """Directory of its image sets."""
        return SAMPLES / self.table / self.name

    @cached_property
    def sets(self) -> list[ImageSet]:
        """All image sets: every sampling with every seed, then what the first seed's kept weights draw unguided."""
        whole = [self.image_set(seed, config) for config in self.samplings for seed in self.seeds]
        kept = [] if self.alignment is None else self.alignment.kept_steps
        plain = replace(self.samplings[0], guidance_scale=1.0)
        return whole + [self.image_set(self.seeds[0], plain, steps) for steps in kept]

    def image_set(self, seed: int, config: SamplingConfig, steps: int | None = None) -> ImageSet:
        """The set of one seed and sampling, by the alignment as it was after so many steps; None: after all."""
        output = self.output(seed) if steps is None else self.output(seed) / STEPS / str(steps)
        if self.alignment is not None and self.alignment.method.trains == "tokenizer":
            return ImageSet(self.name, seed, config, self.samples, GENERATOR, output, steps)
        return ImageSet(self.name, seed, config, self.samples, output, steps=steps)

    def stage(self, kind: str) -> str:
        """Name in dvc.yaml of the stage that aligns, samples or scores it."""
        return f"{kind}@{self.name}" if self.alignment is not None else f"{kind}-control@{self.name}"


def find_variant(params: Params, name: str) -> Variant:
    """The variant or control of a name.

    Raises:
        ParameterError: there is none, or it cannot work.
    """
    if name in params.variants:
        return _aligned(params, name)
    if name in params.controls:
        return _control(params, name)
    known = ", ".join([*params.controls, *params.variants])
    raise ParameterError("variants", f"there is no variant '{name}'; there are {known}.")


def all_variants(params: Params) -> list[Variant]:
    """Controls first, then alignments, each in the order of params.yaml.

    Raises:
        ParameterError: names every key that is wrong.
    """
    found: list[Variant] = []
    problems: list[tuple[str, str]] = []
    for name in (*params.controls, *params.variants):
        try:
            found.append(find_variant(params, name))
        except ParameterError as error:
            problems += problems_of(error)
    if problems:
        raise several(problems)
    return found


def variants_of(params: Params, *tables: str) -> list[Variant]:
    """The rows of these tables, one table's after the other's."""
    return [variant for table in tables for variant in all_variants(params) if variant.table == table]


def _control(params: Params, name: str) -> Variant:
    """The base: at the main temperature with every guidance scale, at others without guidance."""
    own, s = params.controls[name], params.sample
    scales = own.guidance_scales or s.guidance_scales
    samplings = tuple(
        s.config(temperature, scale)
        for temperature in own.temperatures
        for scale in (scales if temperature == s.temperature else (1.0,))
    )
    return Variant(name, own.table, None, samplings, params.align.seeds)


def _aligned(params: Params, name: str) -> Variant:
    own, s = params.variants[name], params.sample
    alignment = resolve(params.align, name, own.method, own.align)
    samplings = tuple(s.config(s.temperature, scale) for scale in own.guidance_scales or s.guidance_scales)
    return Variant(name, own.table, alignment, samplings, params.align.seeds)


def resolve(align: AlignParams, name: str, method: str, changes: dict[str, Any]) -> Alignment:
    """A method with the settings that all share and a variant's changes of them.

    Raises:
        ParameterError: there is no such method, or a setting is wrong; names the key under which it stands.
    """
    where = f"variants.{name}"
    if method not in METHODS:
        raise ParameterError(f"{where}.method", f"there is no method '{method}'; there are {', '.join(METHODS)}.")
    config = METHODS[method].config
    own = {"keep_every", "threads", "images_every"} | names_of(OptimizationConfig) | names_of(config)
    problems = [
        (f"{where}.align.{key}", f"the method {method} has no such parameter.") for key in changes if key not in own
    ]
    problems += [(f"align.{key}", "there is no such parameter.") for key in align.shared if key not in known_names()]
    if problems:
        raise several(problems)
    merged = overlay(align.shared, changes)

    def part(kind: Any, content: Any, at: str = "") -> Any:
        try:
            return checked(kind, content, at)
        except ParameterError as error:  # each key stands in the variant or in what all share
            problems.extend((key_of(name, key, changes), text) for key, text in problems_of(error))

    def fields(kind: type) -> dict[str, Any]:
        return {key: value for key, value in merged.items() if key in names_of(kind)}

    optimization, own_config = part(OptimizationConfig, fields(OptimizationConfig)), part(config, fields(config))
    keep_every = part(CountOrNone, changes.get("keep_every", align.keep_every), "keep_every")
    threads = part(Count | None, changes.get("threads"), "threads")
    images_every = part(CountOrNone, changes.get("images_every", align.images_every), "images_every")
    if problems:
        raise several(problems)
    if optimization.seconds is None and images_every > optimization.steps:
        images_every = 0  # none would come, and the base's, with which they begin, take as long as a small set
    return Alignment(method, optimization, own_config, keep_every, threads, images_every)


def names_of(kind: type) -> set[str]:
    """Names of a dataclass's fields."""
    return {field.name for field in dataclasses.fields(kind)}


def known_names() -> set[str]:
    """All keys that `align` may have."""
    return names_of(OptimizationConfig).union(*(names_of(method.config) for method in METHODS.values()))


def key_of(name: str, key: str, changes: dict[str, Any]) -> str:
    """Where a setting of a variant stands in params.yaml: in its own changes, or in what all share."""
    return f"variants.{name}.align.{key}" if has(changes, key) else f"align.{key}"


def has(content: dict[str, Any], key: str) -> bool:
    """Whether a dotted key, or a part of it that is no mapping, is in nested content."""
    first, _, rest = key.partition(".")
    value = content.get(first)
    return first in content and (not rest or not isinstance(value, dict) or has(value, rest))


def overlay(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested content with changes in place."""
    merged = dict(content)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = overlay(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
