"""The whole of params.yaml, typed and strict: an unknown key, a wrong type or an impossible value stops a stage.

What each parameter means is written beside it in profiles/base.yaml. Hyper-parameters of models and methods are fields
of `vapi_core`'s own dataclasses, which are the schema; here stand the sections that only the pipeline has. What ties
parameters together is in `rules`, what `align` and `variants` make together in `pipelines.config.variant`; both are
applied by `pipelines.config.loading.load_params`.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from vapi_core.errors import ParameterError, quoted
from vapi_core.limits import Bounds, Checked, Count, CountOrNone, Guidance, Length, Seed, Temperature, Weight
from vapi_core.models.family import CaptionConfig
from vapi_core.models.llamagen.generator import GeneratorConfig, TransformerConfig
from vapi_core.models.llamagen.tokenizer import TokenizerConfig
from vapi_core.sampling.sampler import SamplingConfig
from vapi_core.training.loop import OptimizationConfig

MOST_PIXELS = 2**13  # of an image side

Seeds = Annotated[tuple[Seed, ...], Length(least=1)]
Temperatures = Annotated[tuple[Temperature, ...], Length(least=1)]
GuidanceScales = Annotated[tuple[Guidance, ...], Length(least=1)]
Side = Annotated[int, Bounds(least=1, most=MOST_PIXELS)]
# of a file, a stage, and a part of the dotted keys by which DVC finds and overrides parameters: no dot and no plus
Name = Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_-]*$", max_length=80)]
Split = Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]*$", max_length=60)]  # a part of MLflow's names
T = TypeVar("T")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class LaunchParams(Section):
    processes: Annotated[int, Bounds(least=1, most=4096)] = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    dtype: Literal["float32", "bfloat16"] = "float32"
    activation_checkpointing: bool = False
    compile: bool = False


class DatasetParams(Section):
    split: str
    image_column: str
    target_column: str


class SubsetParams(Section):
    source: str  # one of vapi_core.sources.SOURCES
    path: str | None = None
    dataset: DatasetParams | None = None
    prompts: Count | str | None = None
    image_size: Side
    exif_orientation: bool = True
    splits: dict[Split, Count]
    seed: Seed = 0


class TrainedClassifier(Section):
    epochs: Count
    batch_size: Count
    seed: Seed


class ClassifierParams(TrainedClassifier):
    split: str


class ClassifiersParams(Section):
    reward: ClassifierParams | None = None
    scorer: ClassifierParams | None = None
    uci: TrainedClassifier | None = None


@dataclass(frozen=True, kw_only=True)
class TokenizerParams(TokenizerConfig):
    checkpoint: str | None = None
    l1_weight: Weight = 0.0
    color_weight: Weight = 0.0
    unquantized_steps: CountOrNone = 0
    seed: Seed = 0
    training: OptimizationConfig | None = None

    def config(self) -> TokenizerConfig:
        return part_of(self, TokenizerConfig)


@dataclass(frozen=True, kw_only=True)
class GeneratorParams(TransformerConfig):
    family: str = "llamagen"  # one of vapi_core.models.families.FAMILIES
    checkpoint: str | None = None
    seed: Seed = 0
    training: OptimizationConfig | None = None

    def config(
        self, grid: int, codebook_size: int, classes: int, caption_dim: int | None = None, caption_tokens: int = 120
    ) -> GeneratorConfig:
        return GeneratorConfig(
            grid=grid,
            codebook_size=codebook_size,
            classes=classes,
            caption_dim=caption_dim,
            caption_tokens=caption_tokens,
            **vars(part_of(self, TransformerConfig)),
        )


class AlignParams(Section):
    """What all alignments share. Beside these: fields of `OptimizationConfig` and of the methods' own configs."""

    model_config = ConfigDict(extra="allow")

    seeds: Seeds
    keep_every: CountOrNone = 0
    images_every: CountOrNone = 0

    @property
    def shared(self) -> dict[str, Any]:
        """Settings of optimization and methods, as they stand in params.yaml."""
        return dict(self.model_extra or {})


class VariantParams(Section):
    table: Name
    method: str
    align: dict[str, Any] = {}
    guidance_scales: GuidanceScales | None = None


class ControlParams(Section):
    table: Name
    temperatures: Temperatures
    guidance_scales: GuidanceScales | None = None


@dataclass(frozen=True, kw_only=True)
class SampleParams(Checked):
    count: Count
    batch_size: Count | None = None
    save_size: Side | None = None
    classes: Literal["balanced", "random"] = "balanced"
    seed: Seed = 0
    temperature: Annotated[float, Bounds(least=0, most=100)] = 1.0
    top_k: CountOrNone = 0
    top_p: Annotated[float, Bounds(least=0, most=1)] = 1.0
    guidance_scales: GuidanceScales = field(default=(1.0,))

    def config(self, temperature: float, guidance_scale: float) -> SamplingConfig:
        return SamplingConfig(
            temperature=temperature, top_k=self.top_k, top_p=self.top_p, guidance_scale=guidance_scale
        )


class GenEvalParams(Section):
    detector: Literal["scenes", "mask2former"]
    checkpoint: str | None = None
    colors_checkpoint: str | None = None


Extractor = Literal[
    "efficientnet-lite0", "inception-v3-compat", "uci-classifier", "scorer-classifier", "reward-classifier"
]


class ScoreParams(Section):
    geneval: GenEvalParams | None = None
    extractors: Annotated[tuple[Extractor, ...], Length(least=1)]
    input_size: Side = 224
    inception_checkpoint: str | None = None
    reference_batch: str | None = None
    reference_splits: Annotated[tuple[str, ...], Length(least=1)]
    is_splits: Count = 10
    kid_subsets: Count = 100
    kid_subset_size: Count = 1000
    batch_size: Count = 64

    @property
    def references(self) -> tuple[str, ...]:
        """Names of what samples are compared with, the main one first: the reference batch, or splits of the subset."""
        return self.reference_splits if self.reference_batch is None else (Path(self.reference_batch).stem,)


class Params(Section):
    profile: Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9 ._-]*$", max_length=120)]
    task: Literal["c2i", "t2i"]
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Bounds(least=0, most=4096)] = 0
    launch: LaunchParams = LaunchParams()
    subset: SubsetParams
    captions: CaptionConfig | None = None
    classifiers: ClassifiersParams = ClassifiersParams()
    tokenizer: TokenizerParams
    generator: GeneratorParams
    align: AlignParams
    variants: dict[Name, VariantParams] = {}
    controls: dict[Name, ControlParams] = {}
    tables: tuple[Name, ...] = ()
    sample: SampleParams
    score: ScoreParams


def checked(kind: type[T], content: Any, where: str = "") -> T:
    """Content as a typed value. `where` is the key under which it stands.

    Raises:
        ParameterError: names every key that is wrong.
    """
    try:
        # JSON has lists where YAML has them, so that nothing else need be cast
        return _adapter(kind).validate_json(json.dumps(content, default=str))  # type: ignore[arg-type]
    except ValidationError as error:
        raise several([_explain(e, where) for e in error.errors()]) from None


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


def several(problems: list[tuple[str, str]]) -> ParameterError:
    """One error of all problems, each a key and what is wrong with it."""
    told: dict[str, list[str]] = {}  # a union of types complains once for each, and so may every variant
    for key, problem in problems:
        if problem not in told.setdefault(key, []):
            told[key].append(problem)
    (key, first), *others = ((key, " ".join(texts)) for key, texts in told.items())
    return ParameterError(key, first + "".join(f"\n{key}: {problem}" for key, problem in others))


def problems_of(error: ParameterError) -> list[tuple[str, str]]:
    """What `several` has put into one error."""
    return [(key, problem) for key, _, problem in (line.partition(": ") for line in str(error).splitlines())]


def _explain(error: Any, where: str) -> tuple[str, str]:
    parts = [str(part) for part in error["loc"] if not str(part).endswith((")", "]")) and part not in _TYPES]
    key = ".".join([where, *parts] if where else parts) or "params.yaml"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return key, "there is no such parameter."
    if error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return key, "the parameter is missing."
    message = error["msg"][:1].lower() + error["msg"][1:]  # the rest may hold a pattern, where case counts
    return key, f"{message}, not {quoted(error['input'])}."


_TYPES = ("int", "str", "float", "bool")  # which pydantic names where a value may be of several types


def part_of(values: Any, kind: type[T]) -> T:
    """The fields of a dataclass, taken from a value that has them among others."""
    return kind(**{f.name: getattr(values, f.name) for f in dataclasses.fields(kind)})  # type: ignore[arg-type]


def grid_side(params: Params) -> int:
    """Tokens per side of an image's grid."""
    return params.subset.image_size // params.tokenizer.config().downsample


def decimal(value: float) -> str:
    """A number as it stands in names of files and stages: 0.7, 1.0, 1.75."""
    assert math.isfinite(value)
    return f"{value:.6g}" if value != int(value) else f"{value:.1f}"


def short_name(extractor: str) -> str:
    """What a metric's name calls an extractor: `scorer` of scorer-classifier."""
    return extractor.removesuffix("-classifier")
