"""The whole of params.yaml, typed and strict: an unknown key, a wrong type or an impossible value stops a stage at once.

What each parameter means is written beside it in params.yaml; here stand the types, the limits and the rules that tie
parameters together.
"""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from vapi_core.alignment.ar_grpo import ArGrpoConfig
from vapi_core.alignment.reward import RewardWeights
from vapi_core.alignment.straight_through import StraightThroughConfig
from vapi_core.alignment.va_pi import VaPiConfig
from vapi_core.errors import ParameterError
from vapi_core.files import read_yaml
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


class LaunchParams(Section):
    processes: PositiveInt
    strategy: Literal["ddp", "fsdp"]
    dtype: Literal["float32", "bfloat16"]
    activation_checkpointing: bool
    compile: bool


LABELLED_SOURCES = ("mnist", "folder", "dataset", "webdataset")
CAPTIONED_SOURCES = ("scenes", "captioned-folder", "dataset", "webdataset")


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
    splits: dict[str, PositiveInt]
    seed: int


class CaptionParams(Section):
    encoder: Literal["minilm", "flan-t5-xl", "janus"]
    checkpoint: str | None
    tokens: PositiveInt
    truncate: bool
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


class AblationsParams(Section):
    noise_ratios: Annotated[tuple[Ratio, ...], Tuple]
    regularizers: Annotated[tuple[Literal["ce", "kl"], ...], Tuple]
    regularizer_weights: Annotated[tuple[NonNegative, ...], Tuple]
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
    profile: str
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
    return key, f"{error['msg'].lower()}, not {given}."


def broken_rules(params: Params) -> list[tuple[str, str]]:
    """(key, problem) of every rule between parameters that does not hold."""
    p, problems = params, []

    def require(condition: bool, key: str, problem: str) -> None:
        if not condition:
            problems.append((key, problem))

    require(
        (p.subset.path is not None) == (p.subset.source not in ("mnist", "scenes")),
        "subset.path",
        "a folder source or another one that lies on disk needs a path, and mnist and scenes have none; the source is "
        f"{p.subset.source}.",
    )
    require(
        (p.subset.dataset is not None) == (p.subset.source == "dataset"),
        "subset.dataset",
        "the source `dataset` needs it, and no other has a use for it: null.",
    )
    problems += _task_rules(p)
    problems += _classifier_rules(p)
    classifiers = [c for c in (p.classifiers.reward, p.classifiers.scorer) if c is not None]
    for split in {"train", *p.score.reference_splits, *(c.split for c in classifiers)}:
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

    if p.tokenizer.training is not None:
        require(
            p.tokenizer.unquantized_steps < p.tokenizer.training.steps,
            "tokenizer.unquantized_steps",
            f"must be less than tokenizer.training.steps, {p.tokenizer.training.steps}: the rest trains the codebook.",
        )
    for name, model in (("tokenizer", p.tokenizer), ("generator", p.generator)):
        require(
            (model.training is None) == (model.checkpoint is not None),
            f"{name}.training",
            f"null where {name}.checkpoint is imported, and needed where it is null.",
        )

    g = p.generator
    require(g.dim % g.heads == 0, "generator.heads", f"dim {g.dim} does not divide by {g.heads} heads.")
    if g.dim % g.heads == 0:
        require(
            g.dim // g.heads % 4 == 0, "generator.heads", "a head's width must be a multiple of 4 (2-D rotary pairs)."
        )
    require(g.heads % (g.kv_heads or g.heads) == 0, "generator.kv_heads", "heads must divide by kv_heads.")

    for key, section, processes in (
        ("tokenizer.training", p.tokenizer.training, 1),
        ("generator.training", g.training, 1),
        ("align", p.align, p.launch.processes),
    ):
        if section is None:
            continue
        share = section.batch_size // processes
        require(
            section.batch_size % processes == 0,
            "launch.processes",
            f"a batch of {section.batch_size} ({key}.batch_size) does not divide into {processes} equal parts.",
        )
        size = section.micro_batch_size or section.batch_size
        require(
            section.batch_size % processes != 0 or size > share or share % size == 0,
            f"{key}.micro_batch_size",
            f"a process's share of {share} images does not divide into micro-batches of {size}.",
        )

    a = p.align
    for key in ("methods", "seeds"):
        values = getattr(a, key)
        require(len(set(values)) == len(values), f"align.{key}", "an entry stands twice.")
    r, methods = p.rivals, {*a.methods, *p.rivals.methods}
    require(
        len(a.methods) + len(r.methods) == len(methods),
        "rivals.methods",
        "an entry stands twice, or in align.methods too, whose alignments the table of rivals shows anyway.",
    )
    rewarded = any(a.reward.model_dump().values())
    if methods & {"ste", "tokenizer"}:
        require(rewarded, "align.reward", "at least one term needs a weight above 0.")
    if "va-pi" in methods and not rewarded:
        require(
            a.regularizer == "ce" and a.regularizer_weight > 0,
            "align.reward",
            "without any term there must be a prior to learn from: regularizer ce and a weight above 0.",
        )
    if rivals := methods & {"ste", "tokenizer"}:
        require(
            a.reward.embedding == 0,
            "align.reward.embedding",
            f"{' and '.join(sorted(rivals))} compare pixels and have no such term; set it to 0.",
        )
    if "ar-grpo" in methods:
        rewards = a.ar_grpo.rewards
        require(
            any(rewards.model_dump().values()), "align.ar_grpo.rewards", "at least one model needs a weight above 0."
        )
        require(
            rewards.class_likelihood == 0 or "reward-classifier" not in p.score.extractors,
            "score.extractors",
            "'reward-classifier' rewards ar-grpo (align.ar_grpo.rewards.class_likelihood), so it must not score.",
        )
        require(
            "{class}" in a.ar_grpo.prompt or rewards.clip_score == rewards.hpsv2 == 0,
            "align.ar_grpo.prompt",
            "the prompt of a class needs a place for its name, {class}.",
        )
    require(
        a.reward_network not in p.score.extractors,
        "score.extractors",
        f"'{a.reward_network}' rewards the alignment, so it must not score it.",
    )
    s = p.sample
    require(len(set(s.guidance_scales)) == len(s.guidance_scales), "sample.guidance_scales", "an entry stands twice.")
    require(
        s.temperature not in s.control_temperatures,
        "sample.control_temperatures",
        f"temperature {s.temperature} is sampled anyway.",
    )
    temperatures = [s.temperature, *s.control_temperatures, *r.temperatures]
    require(
        len(set(temperatures)) == len(temperatures),
        "rivals.temperatures",
        "an entry stands twice, or is sampled anyway (sample.temperature, sample.control_temperatures).",
    )
    for name in AblationsParams.model_fields:
        values = getattr(p.ablations, name)
        require(len(set(values)) == len(values), f"ablations.{name}", "an entry stands twice.")
    parts = {"prior", *RewardParams.model_fields}
    for objective in p.ablations.objectives:
        require(
            set(objective.split("+")) <= parts and ("prior" not in objective or objective == "prior"),
            "ablations.objectives",
            f"'{objective}' is neither prior nor made of {', '.join(RewardParams.model_fields)}, joined by +.",
        )
    return problems


def _classifier_rules(p: Params) -> list[tuple[str, str]]:
    """The network that rewards and the one that scores are there where they are needed, and have nothing in common."""
    reward, scorer, a, problems = p.classifiers.reward, p.classifiers.scorer, p.align, []
    methods = {*a.methods, *p.rivals.methods}
    users = {
        "align.reward.perceptual": a.reward.perceptual > 0
        and a.reward_network == "reward-classifier"
        and methods & {"va-pi", "ste", "tokenizer"},
        "align.ar_grpo.rewards.class_likelihood": a.ar_grpo.rewards.class_likelihood > 0 and "ar-grpo" in methods,
        "score.extractors": "reward-classifier" in p.score.extractors,
    }
    if reward is None and (needing := [key for key, needs in users.items() if needs]):
        problems.append(("classifiers.reward", f"needed by {', '.join(needing)}."))
    if scorer is None and "scorer-classifier" in p.score.extractors:
        problems.append(("classifiers.scorer", "needed by score.extractors."))
    if reward is not None and scorer is not None and reward.split == scorer.split:
        problem = "the network that scores must not learn from the images of the network that rewards."
        problems.append(("classifiers.scorer.split", problem))
    if scorer is not None and scorer.split in p.score.reference_splits:
        problem = f"'{scorer.split}' trains the scorer, so its features of these images are not those of new ones."
        problems.append(("score.reference_splits", problem))
    return problems


def _task_rules(p: Params) -> list[tuple[str, str]]:
    """What `task` asks of the other parameters."""
    t2i, scenes = p.task == "t2i", p.subset.source == "scenes"
    problems = []
    sources = CAPTIONED_SOURCES if t2i else LABELLED_SOURCES
    if p.subset.source not in sources:
        problems.append(("subset.source", f"task {p.task} needs one of {', '.join(sources)}, not {p.subset.source}."))
    janus = p.captions is not None and p.captions.encoder == "janus"
    if janus != is_janus(p.generator.checkpoint):
        problem = "a Janus reads prompts (captions.encoder: janus), and its checkpoint is a folder or a hub id; "
        problems.append(("generator.checkpoint", problem + "LlamaGen's is a file, .pt or .safetensors."))
    if janus and p.captions is not None and p.captions.truncate:
        problems.append(("captions.truncate", "prompts of Janus are never cut off; false, and shorten the captions."))
    for key, value in (("captions", p.captions), ("subset.prompts", p.subset.prompts)):
        if (value is not None) != t2i:
            problems.append((key, "task t2i needs it, and c2i has no use for it: null."))
    if not t2i and p.score.geneval is not None:
        problems.append(("score.geneval", "GenEval scores text to image (task: t2i); null."))
    if t2i and isinstance(p.subset.prompts, int) and not scenes:
        problems.append(("subset.prompts", "prompts are made for scenes only; name a GenEval prompt file."))
    if p.score.geneval is not None and (p.score.geneval.detector == "scenes") != scenes:
        problems.append(("score.geneval.detector", "the detector `scenes` is for the source scenes, and only it is."))
    if t2i and "scorer-classifier" in p.score.extractors:
        problems.append(("score.extractors", "'scorer-classifier' tells classes, which text to image does not have."))
    if t2i and "ar-grpo" in {*p.align.methods, *p.rivals.methods} and p.align.ar_grpo.rewards.class_likelihood:
        problems.append(("align.ar_grpo.rewards.class_likelihood", "captions have no class; set it to 0 for t2i."))
    return problems


def is_janus(checkpoint: str | None) -> bool:
    """Whether a checkpoint is one of Janus, a folder or a hub id; LlamaGen's are files."""
    return checkpoint is not None and Path(checkpoint).suffix not in (".pt", ".pth", ".bin", ".safetensors")


def grid_side(params: Params) -> int:
    """Tokens per side of an image's grid."""
    return params.subset.image_size // params.tokenizer.config().downsample


def decimal(value: float) -> str:
    """A number as it stands in names of files and stages: 0.7, 1.0, 1.75."""
    assert math.isfinite(value)
    return f"{value:.6g}" if value != int(value) else f"{value:.1f}"
