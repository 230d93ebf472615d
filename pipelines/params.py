"""The whole of params.yaml, typed and strict: an unknown key, a wrong type or an impossible value stops a stage at once.

What each parameter means is written beside it in params.yaml; here stand the types, the limits and the rules that tie
parameters together.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from vapi_core.alignment.reward import RewardWeights
from vapi_core.alignment.va_pi import VaPiConfig
from vapi_core.errors import FileError, ParameterError
from vapi_core.models.generator import GeneratorConfig
from vapi_core.models.tokenizer import TokenizerConfig
from vapi_core.sampling import SamplingConfig
from vapi_core.training import OptimizationConfig

PARAMS_FILE = Path("params.yaml")

Ratio = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Tuple = Field(strict=False, min_length=1)  # YAML has lists only


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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


class SubsetParams(Section):
    source: Literal["mnist", "folder"]
    path: str | None
    image_size: PositiveInt
    splits: dict[str, PositiveInt]
    seed: int


class ClassifierParams(Section):
    split: str
    epochs: PositiveInt
    batch_size: PositiveInt
    seed: int


class ClassifiersParams(Section):
    reward: ClassifierParams
    scorer: ClassifierParams


class TokenizerParams(Section):
    checkpoint: str | None
    codebook_size: PositiveInt
    codebook_dim: PositiveInt
    base_channels: PositiveInt
    encoder_multipliers: Annotated[tuple[PositiveInt, ...], Tuple]
    decoder_multipliers: Annotated[tuple[PositiveInt, ...], Tuple]
    res_blocks: Annotated[int, Field(ge=0)]
    z_channels: PositiveInt
    commitment_weight: NonNegative
    entropy_weight: NonNegative
    l1_weight: NonNegative
    unquantized_steps: Annotated[int, Field(ge=0)]
    seed: int
    training: OptimizationParams

    def config(self) -> TokenizerConfig:
        names = self.model_dump(exclude={"checkpoint", "l1_weight", "unquantized_steps", "seed", "training"})
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
    training: OptimizationParams

    def config(self, grid: int, codebook_size: int, classes: int) -> GeneratorConfig:
        names = self.model_dump(exclude={"checkpoint", "seed", "training"})
        return GeneratorConfig(grid=grid, codebook_size=codebook_size, classes=classes, **names)


class RewardParams(Section):
    mse: NonNegative
    perceptual: NonNegative
    l1: NonNegative
    embedding: NonNegative


class AlignParams(OptimizationParams):
    methods: Annotated[tuple[Literal["va-pi", "cross-entropy"], ...], Tuple]
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
    lpips_checkpoint: str | None
    log_kl_every: Annotated[int, Field(ge=0)]

    def method(self) -> VaPiConfig:
        names = VaPiConfig.__dataclass_fields__.keys() - {"reward"}
        values = {name: getattr(self, name) for name in names}
        return VaPiConfig(reward=RewardWeights(**self.reward.model_dump()), **values)


class SampleParams(Section):
    count: PositiveInt
    batch_size: PositiveInt
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


class ScoreParams(Section):
    extractors: Annotated[
        tuple[Literal["efficientnet-lite0", "inception-v3-compat", "scorer-classifier", "reward-classifier"], ...],
        Tuple,
    ]
    input_size: PositiveInt
    inception_checkpoint: str | None
    reference_splits: Annotated[tuple[str, ...], Tuple]
    is_splits: PositiveInt
    kid_subsets: PositiveInt
    kid_subset_size: PositiveInt
    batch_size: PositiveInt


class Params(Section):
    profile: str
    task: Literal["c2i"]
    device: Literal["auto", "cpu", "cuda"]
    threads: Annotated[int, Field(ge=0)]
    subset: SubsetParams
    classifiers: ClassifiersParams
    tokenizer: TokenizerParams
    generator: GeneratorParams
    align: AlignParams
    sample: SampleParams
    score: ScoreParams


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Reads and checks a params file.

    Raises:
        FileError: the file is missing or no YAML.
        ParameterError: names every key that is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileError(path, "the file is missing. Run from the top of the repository.") from None
    except yaml.YAMLError as error:
        raise FileError(path, f"not valid YAML: {error}") from None
    return check_params(content)


def check_params(content: Any) -> Params:
    """Types a parsed params file and applies the rules between parameters. Raises ParameterError."""
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        problems = [_explain(e) for e in error.errors()]
        more = "".join(f"\n{key}: {problem}" for key, problem in problems[1:])
        raise ParameterError(problems[0][0], problems[0][1] + more) from None
    for name, problem in broken_rules(params):
        raise ParameterError(name, problem)
    return params


def _explain(error: Any) -> tuple[str, str]:
    key = ".".join(str(part) for part in error["loc"]) or "params.yaml"
    if error["type"] == "extra_forbidden":
        return key, "there is no such parameter."
    if error["type"] == "missing":
        return key, "the parameter is missing."
    given = repr(error["input"])
    hint = ""
    if error["type"] == "float_type" and isinstance(error["input"], str):
        hint = " Write exponents with a point (1.0e-5): YAML reads 1e-5 as text."
    return key, f"{error['msg'].lower()}, not {given}.{hint}"


def broken_rules(params: Params) -> list[tuple[str, str]]:
    """(key, problem) of every rule between parameters that does not hold."""
    p, problems = params, []

    def require(condition: bool, key: str, problem: str) -> None:
        if not condition:
            problems.append((key, problem))

    require(
        (p.subset.path is not None) == (p.subset.source == "folder"),
        "subset.path",
        "a folder source, and only a folder source, needs a path.",
    )
    for split in {"train", *p.score.reference_splits, p.classifiers.reward.split, p.classifiers.scorer.split}:
        require(split in p.subset.splits, "subset.splits", f"the split '{split}' is used but not defined.")

    tokenizer = p.tokenizer.config()
    require(
        len(tokenizer.encoder_multipliers) == len(tokenizer.decoder_multipliers),
        "tokenizer.decoder_multipliers",
        "encoder and decoder need the same number of multipliers.",
    )
    require(
        p.subset.image_size % tokenizer.downsample == 0,
        "subset.image_size",
        f"{p.subset.image_size} pixels do not divide into a token grid: the tokenizer maps {tokenizer.downsample} "
        "pixels of a side to one token.",
    )
    widths = [m * tokenizer.base_channels for m in (*tokenizer.encoder_multipliers, *tokenizer.decoder_multipliers)]
    require(
        all(width % 32 == 0 for width in (tokenizer.base_channels, *widths)),
        "tokenizer.base_channels",
        "every level's channels must be a multiple of 32, the number of norm groups.",
    )
    if tokenizer.res_blocks == 0:
        require(
            set(tokenizer.encoder_multipliers) == {1},
            "tokenizer.res_blocks",
            "an encoder without residual blocks cannot change its width: all encoder_multipliers must be 1.",
        )

    require(
        p.tokenizer.unquantized_steps < p.tokenizer.training.steps,
        "tokenizer.unquantized_steps",
        f"must be less than tokenizer.training.steps, {p.tokenizer.training.steps}: the rest trains the codebook.",
    )

    g = p.generator
    require(g.dim % g.heads == 0, "generator.heads", f"dim {g.dim} does not divide by {g.heads} heads.")
    if g.dim % g.heads == 0:
        require(
            g.dim // g.heads % 4 == 0, "generator.heads", "a head's width must be a multiple of 4 (2-D rotary pairs)."
        )
    require(g.heads % (g.kv_heads or g.heads) == 0, "generator.kv_heads", "heads must divide by kv_heads.")

    for key, section in (
        ("tokenizer.training", p.tokenizer.training),
        ("generator.training", g.training),
        ("align", p.align),
    ):
        size = section.micro_batch_size or section.batch_size
        require(
            section.batch_size % size == 0,
            f"{key}.micro_batch_size",
            f"a batch of {section.batch_size} does not divide into micro-batches of {size}.",
        )

    a = p.align
    for key in ("methods", "seeds"):
        values = getattr(a, key)
        require(len(set(values)) == len(values), f"align.{key}", "an entry stands twice.")
    if "va-pi" in a.methods:
        require(any(a.reward.model_dump().values()), "align.reward", "at least one term needs a weight above 0.")
    require(
        a.reward_network not in p.score.extractors,
        "score.extractors",
        f"'{a.reward_network}' rewards the alignment, so it must not score it.",
    )
    require(
        p.classifiers.reward.split != p.classifiers.scorer.split,
        "classifiers.scorer.split",
        "the network that scores must not learn from the images of the network that rewards.",
    )
    require(
        p.classifiers.scorer.split not in p.score.reference_splits,
        "score.reference_splits",
        f"'{p.classifiers.scorer.split}' trains the scorer, so its features of these images are not those of new ones.",
    )

    s = p.sample
    require(len(set(s.guidance_scales)) == len(s.guidance_scales), "sample.guidance_scales", "an entry stands twice.")
    require(
        s.temperature not in s.control_temperatures,
        "sample.control_temperatures",
        f"temperature {s.temperature} is sampled anyway.",
    )
    return problems


def grid_side(params: Params) -> int:
    """Tokens per side of an image's grid."""
    return params.subset.image_size // params.tokenizer.config().downsample


def decimal(value: float) -> str:
    """A number as it stands in names of files and stages: 0.7, 1.0, 1.75."""
    assert math.isfinite(value)
    return f"{value:.6g}" if value != int(value) else f"{value:.1f}"
