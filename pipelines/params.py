"""The whole of params.yaml, typed and strict: an unknown key, a wrong type or an impossible value stops a stage at once.

What each parameter means is written beside it in params.yaml; here stand the types and limits of each, and in
`rules` what ties them together.
"""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError
from pydantic_core import PydanticCustomError

from pipelines.rules import broken_rules
from vapi_core.alignment.ar_grpo import ArGrpoConfig
from vapi_core.alignment.reward import RewardWeights
from vapi_core.alignment.straight_through import StraightThroughConfig
from vapi_core.alignment.va_pi import VaPiConfig
from vapi_core.errors import ParameterError, quoted, shortened
from vapi_core.files import read_yaml
from vapi_core.models.generator import GeneratorConfig
from vapi_core.models.tokenizer import TokenizerConfig
from vapi_core.sampling import SamplingConfig
from vapi_core.training import OptimizationConfig

PARAMS_FILE = Path("params.yaml")
MOST_PROBLEMS = 20  # that one message tells

Ratio = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Tuple = Field(strict=False, min_length=1)  # YAML has lists only


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class OptimizationParams(Section):
    learning_rate: Positive
    steps: PositiveInt
    batch_size: PositiveInt
    micro_batch_size: PositiveInt | None = None
    schedule: Literal["constant", "linear", "cosine"]
    warmup_steps: Annotated[int, Field(ge=0)]
    weight_decay: NonNegative
    betas: Annotated[tuple[Ratio, Ratio], Tuple]
    gradient_norm: Positive
    checkpoint_every: PositiveInt

    def config(self) -> OptimizationConfig:
        return OptimizationConfig(**{name: getattr(self, name) for name in OptimizationParams.model_fields})


class LaunchParams(Section):
    processes: PositiveInt
    strategy: Literal["ddp", "fsdp"]
    dtype: Literal["float32", "bfloat16"]
    activation_checkpointing: bool
    compile: bool


class DatasetParams(Section):
    split: str
    image_column: str
    target_column: str


class SubsetParams(Section):
    source: Literal["mnist", "folder", "scenes", "captioned-folder", "dataset", "webdataset"]
    path: str | None
    dataset: DatasetParams | None
    prompts: PositiveInt | str | None
    image_size: PositiveInt
    exif_orientation: bool
    splits: dict[str, PositiveInt]
    seed: int


class CaptionParams(Section):
    encoder: Literal["minilm", "flan-t5-xl", "janus"]
    checkpoint: str | None
    tokens: PositiveInt
    truncate: bool
    standardize: bool
    dtype: Literal["float16", "float32"]


class ClassifierParams(Section):
    split: str
    epochs: PositiveInt
    batch_size: PositiveInt
    seed: int


class ClassifiersParams(Section):
    reward: ClassifierParams | None
    scorer: ClassifierParams | None


class TokenizerParams(Section):
    checkpoint: str | None
    codebook_size: PositiveInt
    codebook_dim: PositiveInt
    base_channels: PositiveInt
    encoder_multipliers: Annotated[tuple[PositiveInt, ...], Tuple]
    decoder_multipliers: Annotated[tuple[PositiveInt, ...], Tuple]
    res_blocks: Annotated[int, Field(ge=0)]
    z_channels: PositiveInt
    norm_groups: PositiveInt
    commitment_weight: NonNegative
    entropy_weight: NonNegative
    l1_weight: NonNegative
    color_weight: NonNegative
    unquantized_steps: Annotated[int, Field(ge=0)]
    seed: int
    training: OptimizationParams | None

    def config(self) -> TokenizerConfig:
        own = {"checkpoint", "l1_weight", "color_weight", "unquantized_steps", "seed", "training"}
        names = self.model_dump(exclude=own)
        return TokenizerConfig(**names)


class GeneratorParams(Section):
    checkpoint: str | None
    dim: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt | None
    multiple_of: PositiveInt
    token_dropout: Ratio
    residual_dropout: Ratio
    ffn_dropout: Ratio
    class_dropout: Ratio
    seed: int
    training: OptimizationParams | None

    def config(
        self, grid: int, codebook_size: int, classes: int, caption_dim: int | None = None, caption_tokens: int = 120
    ) -> GeneratorConfig:
        names = self.model_dump(exclude={"checkpoint", "seed", "training"})
        return GeneratorConfig(
            grid=grid,
            codebook_size=codebook_size,
            classes=classes,
            caption_dim=caption_dim,
            caption_tokens=caption_tokens,
            **names,
        )


class RewardParams(Section):
    mse: NonNegative
    perceptual: NonNegative
    l1: NonNegative
    embedding: NonNegative


Method = Literal["va-pi", "cross-entropy", "ste", "tokenizer", "ar-grpo"]


class StraightThroughParams(Section):
    learning_rate: Positive | None
    temperature: Positive
    tau: Positive
    ce_weight: NonNegative


class TokenizerPostTrainingParams(Section):
    learning_rate: Positive | None


class ExternalRewardParams(Section):
    class_likelihood: NonNegative
    clip_score: NonNegative
    hpsv2: NonNegative


class ArGrpoParams(Section):
    learning_rate: Positive | None
    guidance_scale: Annotated[float, Field(ge=1)]
    kl_weight: NonNegative
    rewards: ExternalRewardParams
    prompt: str
    clip_checkpoint: str | None
    hpsv2_checkpoint: str | None


class AlignParams(OptimizationParams):
    methods: Annotated[tuple[Method, ...], Tuple]
    seeds: Annotated[tuple[int, ...], Tuple]
    group_size: Annotated[int, Field(ge=2)]
    noise_ratio: Ratio
    noise_kernel: Literal["uniform", "uniform-except-self"]
    regularizer: Literal["ce", "kl", "none"]
    regularizer_weight: NonNegative
    clip_epsilon: Annotated[float, Field(gt=0, lt=1)]
    advantage_clamp: Positive
    reward: RewardParams
    reward_network: Literal["reward-classifier", "lpips"]
    reward_first_stage: Annotated[int, Field(ge=0, le=3)]
    lpips_checkpoint: str | None
    log_kl_every: Annotated[int, Field(ge=0)]
    budget: Literal["steps"] | Positive
    keep_every: Annotated[int, Field(ge=0)]
    ste: StraightThroughParams
    tokenizer: TokenizerPostTrainingParams
    ar_grpo: ArGrpoParams

    def kept_steps(self) -> list[int]:
        """After which steps an alignment keeps its weights; none under a budget of seconds, which knows no steps."""
        if self.keep_every == 0 or self.budget != "steps":
            return []
        return list(range(self.keep_every, self.steps, self.keep_every))

    def method(self) -> VaPiConfig:
        names = VaPiConfig.__dataclass_fields__.keys() - {"reward"}
        values = {name: getattr(self, name) for name in names}
        return VaPiConfig(reward=self.weights(), **values)

    def straight_through(self) -> StraightThroughConfig:
        values = self.ste.model_dump(exclude={"learning_rate"})
        return StraightThroughConfig(reconstruction=self.weights(), **values)

    def grpo(self) -> ArGrpoConfig:
        a = self.ar_grpo
        return ArGrpoConfig(self.group_size, a.guidance_scale, a.kl_weight, self.clip_epsilon, self.advantage_clamp)

    def weights(self) -> RewardWeights:
        return RewardWeights(**self.reward.model_dump())

    def optimization(self, method: str) -> OptimizationConfig:
        """How a method is optimized: its own learning rate if it has one, the budget that all share."""
        own = {
            "ste": self.ste.learning_rate,
            "tokenizer": self.tokenizer.learning_rate,
            "ar-grpo": self.ar_grpo.learning_rate,
        }
        rate = own.get(method) or self.learning_rate
        seconds = None if self.budget == "steps" else self.budget
        return dataclasses.replace(self.config(), learning_rate=rate, seconds=seconds)

    def of_method(self, method: str) -> dict[str, Any]:
        """The parameters that can change what a method comes to."""
        others = {"ste", "tokenizer", "ar_grpo"} - {method.replace("-", "_")}
        return self.model_dump(exclude={"methods", "seeds", *others})


class RivalsParams(Section):
    methods: Annotated[tuple[Method, ...], Field(strict=False)]
    temperatures: Annotated[tuple[Positive, ...], Field(strict=False)]


def _names_a_row(value: Any) -> Any:
    """DVC names a row of a table by a number as it is written, the stage as `decimal` writes it: 0 would be 0.0 there."""
    if isinstance(value, int | float) and math.isfinite(value) and str(value) != decimal(value):
        raise PydanticCustomError("row", f"must be written {decimal(value)}, as the row's folder is called")
    return value


RowRatio = Annotated[Ratio, BeforeValidator(_names_a_row)]
RowWeight = Annotated[NonNegative, BeforeValidator(_names_a_row)]


class AblationsParams(Section):
    noise_ratios: Annotated[tuple[RowRatio, ...], Tuple]
    regularizers: Annotated[tuple[Literal["ce", "kl"], ...], Tuple]
    regularizer_weights: Annotated[tuple[RowWeight, ...], Tuple]
    objectives: Annotated[tuple[str, ...], Tuple]


class SampleParams(Section):
    count: PositiveInt
    batch_size: PositiveInt | None
    save_size: PositiveInt | None
    classes: Literal["balanced", "random"]
    seed: int
    temperature: NonNegative
    top_k: Annotated[int, Field(ge=0)]
    top_p: Ratio
    guidance_scales: Annotated[tuple[Annotated[float, Field(ge=1)], ...], Tuple]
    control_temperatures: Annotated[tuple[Positive, ...], Field(strict=False)]

    def config(self, temperature: float, guidance_scale: float) -> SamplingConfig:
        return SamplingConfig(
            temperature=temperature, top_k=self.top_k, top_p=self.top_p, guidance_scale=guidance_scale
        )


class GenEvalParams(Section):
    detector: Literal["scenes", "mask2former"]
    checkpoint: str | None
    colors_checkpoint: str | None


class ScoreParams(Section):
    geneval: GenEvalParams | None
    extractors: Annotated[
        tuple[Literal["efficientnet-lite0", "inception-v3-compat", "scorer-classifier", "reward-classifier"], ...],
        Tuple,
    ]
    input_size: PositiveInt
    inception_checkpoint: str | None
    reference_batch: str | None
    reference_splits: Annotated[tuple[str, ...], Tuple]
    is_splits: PositiveInt
    kid_subsets: PositiveInt
    kid_subset_size: PositiveInt
    batch_size: PositiveInt

    @property
    def references(self) -> tuple[str, ...]:
        """Names of what samples are compared with, the main one first: the reference batch, or splits of the subset."""
        return self.reference_splits if self.reference_batch is None else (Path(self.reference_batch).stem,)


class Params(Section):
    profile: Annotated[str, Field(min_length=1, max_length=500)]  # MLflow's limits for the name of an experiment
    task: Literal["c2i", "t2i"]
    device: Literal["auto", "cpu", "cuda"]
    threads: Annotated[int, Field(ge=0)]
    launch: LaunchParams
    subset: SubsetParams
    captions: CaptionParams | None
    classifiers: ClassifiersParams
    tokenizer: TokenizerParams
    generator: GeneratorParams
    align: AlignParams
    sample: SampleParams
    score: ScoreParams
    rivals: RivalsParams
    ablations: AblationsParams


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Reads and checks a params file.

    Raises:
        FileError: the file is missing or no YAML.
        ParameterError: names every key that is wrong.
    """
    return check_params(read_yaml(path))


def check_params(content: Any) -> Params:
    """Types a parsed params file and applies the rules between parameters. Raises ParameterError."""
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        problems = [_explain(e) for e in error.errors()]
        more = "".join(f"\n{key}: {problem}" for key, problem in problems[1:MOST_PROBLEMS])
        if len(problems) > MOST_PROBLEMS:
            more += f"\nand {len(problems) - MOST_PROBLEMS} more."
        raise ParameterError(problems[0][0], problems[0][1] + more) from None
    for name, problem in broken_rules(params):
        raise ParameterError(name, problem)
    return params


def _explain(error: Any) -> tuple[str, str]:
    key = shortened(".".join(map(str, error["loc"]))) or "params.yaml"
    if error["type"] == "extra_forbidden":
        return key, "there is no such parameter."
    if error["type"] == "missing":
        return key, "the parameter is missing."
    return key, f"{error['msg'].lower()}, not {quoted(error['input'])}."


def grid_side(params: Params) -> int:
    """Tokens per side of an image's grid."""
    return params.subset.image_size // params.tokenizer.config().downsample


def decimal(value: float) -> str:
    """A number as it stands in names of files and stages: 0.7, 1.0, 1.75."""
    assert math.isfinite(value)
    return f"{value:.6g}" if value != int(value) else f"{value:.1f}"
