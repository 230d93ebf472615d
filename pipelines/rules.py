"""What ties the parameters of params.yaml together; the types and limits of each stand in `params`.

A rule gives (key, problem) where it does not hold. All broken rules are reported at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vapi_core.errors import quoted

if TYPE_CHECKING:
    from pipelines.params import Params

Problem = tuple[str, str]  # the key, and what is wrong with it

LABELLED_SOURCES = ("mnist", "folder", "dataset", "webdataset")
CAPTIONED_SOURCES = ("scenes", "captioned-folder", "dataset", "webdataset")
WEIGHT_FILES = (".pt", ".pth", ".bin", ".safetensors")
TWICE = "an entry stands twice."
FEWEST_IMAGES = 4  # precision and recall look at the third nearest neighbour


def broken_rules(params: Params) -> list[Problem]:
    """Every rule between parameters that does not hold."""
    of_models = (_subset, _task, _classifiers, _tokenizer, _generator, _batches)
    rules = (*of_models, _methods, _rewards, _sampling, _scoring, _ablations)
    return [problem for rule in rules for problem in rule(params)]


def is_janus(checkpoint: str | None) -> bool:
    """Whether a checkpoint is one of Janus, a folder or a hub id; LlamaGen's are files."""
    return checkpoint is not None and Path(checkpoint).suffix not in WEIGHT_FILES


def _repeats(values: tuple) -> bool:
    return len(set(values)) != len(values)


def _subset(p: Params) -> Iterator[Problem]:
    source = p.subset.source
    if (p.subset.path is not None) != (source not in ("mnist", "scenes")):
        yield (
            "subset.path",
            "a folder source or another one that lies on disk needs a path, and mnist and scenes have none; the source is "
            f"{source}.",
        )
    if (p.subset.dataset is not None) != (source == "dataset"):
        yield "subset.dataset", "the source `dataset` needs it, and no other has a use for it: null."
    classifiers = [c for c in (p.classifiers.reward, p.classifiers.scorer) if c is not None]
    for split in {"train", *p.score.reference_splits, *(c.split for c in classifiers)}:
        if split not in p.subset.splits:
            yield "subset.splits", f"the split {quoted(split)} is used but not defined."


def _task(p: Params) -> Iterator[Problem]:
    """What `task` asks of the other parameters."""
    t2i, scenes = p.task == "t2i", p.subset.source == "scenes"
    sources = CAPTIONED_SOURCES if t2i else LABELLED_SOURCES
    if p.subset.source not in sources:
        yield "subset.source", f"task {p.task} needs one of {', '.join(sources)}, not {p.subset.source}."
    janus = p.captions is not None and p.captions.encoder == "janus"
    if janus != is_janus(p.generator.checkpoint):
        problem = "a Janus reads prompts (captions.encoder: janus), and its checkpoint is a folder or a hub id; "
        yield "generator.checkpoint", problem + "LlamaGen's is a file, .pt or .safetensors."
    if janus and p.captions is not None and p.captions.truncate:
        yield "captions.truncate", "prompts of Janus are never cut off; false, and shorten the captions."
    for key, value in (("captions", p.captions), ("subset.prompts", p.subset.prompts)):
        if (value is not None) != t2i:
            yield key, "task t2i needs it, and c2i has no use for it: null."
    if not t2i and p.score.geneval is not None:
        yield "score.geneval", "GenEval scores text to image (task: t2i); null."
    if t2i and isinstance(p.subset.prompts, int) and not scenes:
        yield "subset.prompts", "prompts are made for scenes only; name a GenEval prompt file."
    if p.score.geneval is not None and (p.score.geneval.detector == "scenes") != scenes:
        yield "score.geneval.detector", "the detector `scenes` is for the source scenes, and only it is."
    if t2i and "scorer-classifier" in p.score.extractors:
        yield "score.extractors", "'scorer-classifier' tells classes, which text to image does not have."
    if t2i and "ar-grpo" in {*p.align.methods, *p.rivals.methods} and p.align.ar_grpo.rewards.class_likelihood:
        yield "align.ar_grpo.rewards.class_likelihood", "captions have no class; set it to 0 for t2i."


def _classifiers(p: Params) -> Iterator[Problem]:
    """The network that rewards and the one that scores are there where they are needed, and have nothing in common."""
    reward, scorer, a = p.classifiers.reward, p.classifiers.scorer, p.align
    methods = {*a.methods, *p.rivals.methods}
    users = {
        "align.reward.perceptual": a.reward.perceptual > 0
        and a.reward_network == "reward-classifier"
        and methods & {"va-pi", "ste", "tokenizer"},
        "align.ar_grpo.rewards.class_likelihood": a.ar_grpo.rewards.class_likelihood > 0 and "ar-grpo" in methods,
        "score.extractors": "reward-classifier" in p.score.extractors,
    }
    if reward is None and (needing := [key for key, needs in users.items() if needs]):
        yield "classifiers.reward", f"needed by {', '.join(needing)}."
    if scorer is None and "scorer-classifier" in p.score.extractors:
        yield "classifiers.scorer", "needed by score.extractors."
    if reward is not None and scorer is not None and reward.split == scorer.split:
        yield (
            "classifiers.scorer.split",
            "the network that scores must not learn from the images of the network that rewards.",
        )
    if scorer is not None and scorer.split in p.score.reference_splits:
        problem = f"'{scorer.split}' trains the scorer, so its features of these images are not those of new ones."
        yield "score.reference_splits", problem


def _tokenizer(p: Params) -> Iterator[Problem]:
    t = p.tokenizer.config()
    if len(t.encoder_multipliers) != len(t.decoder_multipliers):
        yield "tokenizer.decoder_multipliers", "encoder and decoder need the same number of multipliers."
    if p.subset.image_size % t.downsample != 0:
        yield (
            "subset.image_size",
            f"{p.subset.image_size} pixels do not divide into a token grid: the tokenizer maps {t.downsample} "
            "pixels of a side to one token.",
        )
    widths = [m * t.base_channels for m in (1, *t.encoder_multipliers, *t.decoder_multipliers)]
    if any(width % t.norm_groups != 0 for width in widths):
        yield (
            "tokenizer.norm_groups",
            f"every level's channels must divide into {t.norm_groups} groups; base_channels is {t.base_channels}.",
        )
    if t.res_blocks == 0 and set(t.encoder_multipliers) != {1}:
        yield (
            "tokenizer.res_blocks",
            "an encoder without residual blocks cannot change its width: all encoder_multipliers must be 1.",
        )
    training = p.tokenizer.training
    if training is not None and p.tokenizer.unquantized_steps >= training.steps:
        yield (
            "tokenizer.unquantized_steps",
            f"must be less than tokenizer.training.steps, {training.steps}: the rest trains the codebook.",
        )


def _generator(p: Params) -> Iterator[Problem]:
    for name, model in (("tokenizer", p.tokenizer), ("generator", p.generator)):
        if (model.training is None) != (model.checkpoint is not None):
            yield f"{name}.training", f"null where {name}.checkpoint is imported, and needed where it is null."
    g = p.generator
    if g.dim % g.heads != 0:
        yield "generator.heads", f"dim {g.dim} does not divide by {g.heads} heads."
    elif g.dim // g.heads % 4 != 0:
        yield "generator.heads", "a head's width must be a multiple of 4 (2-D rotary pairs)."
    if g.heads % (g.kv_heads or g.heads) != 0:
        yield "generator.kv_heads", "heads must divide by kv_heads."


def _batches(p: Params) -> Iterator[Problem]:
    """A step's batch divides into equal parts for processes, and these into micro-batches."""
    for key, section, processes in (
        ("tokenizer.training", p.tokenizer.training, 1),
        ("generator.training", p.generator.training, 1),
        ("align", p.align, p.launch.processes),
    ):
        if section is None:
            continue
        if section.batch_size % processes != 0:
            yield (
                "launch.processes",
                f"a batch of {section.batch_size} ({key}.batch_size) does not divide into {processes} equal parts.",
            )
            continue
        share = section.batch_size // processes
        size = section.micro_batch_size or share
        if size <= share and share % size != 0:
            yield (
                f"{key}.micro_batch_size",
                f"a process's share of {share} images does not divide into micro-batches of {size}.",
            )


def _methods(p: Params) -> Iterator[Problem]:
    for key, values in (("methods", p.align.methods), ("seeds", p.align.seeds)):
        if _repeats(values):
            yield f"align.{key}", TWICE
    if _repeats(p.rivals.methods) or set(p.rivals.methods) & set(p.align.methods):
        yield (
            "rivals.methods",
            "an entry stands twice, or in align.methods too, whose alignments the table of rivals shows anyway.",
        )


def _rewards(p: Params) -> Iterator[Problem]:
    """Every method has something to learn from, and what rewards does not score."""
    a, methods = p.align, {*p.align.methods, *p.rivals.methods}
    rewarded = any(a.reward.model_dump().values())
    pixel_losses = sorted(methods & {"ste", "tokenizer"})
    if pixel_losses and not rewarded:
        yield "align.reward", "at least one term needs a weight above 0."
    if "va-pi" in methods and not rewarded and not (a.regularizer == "ce" and a.regularizer_weight > 0):
        yield (
            "align.reward",
            "without any term there must be a prior to learn from: regularizer ce and a weight above 0.",
        )
    if pixel_losses and a.reward.embedding != 0:
        yield (
            "align.reward.embedding",
            f"{' and '.join(pixel_losses)} compare pixels and have no such term; set it to 0.",
        )
    if "ar-grpo" in methods:
        rewards = a.ar_grpo.rewards
        if not any(rewards.model_dump().values()):
            yield "align.ar_grpo.rewards", "at least one model needs a weight above 0."
        if rewards.class_likelihood > 0 and "reward-classifier" in p.score.extractors:
            yield (
                "score.extractors",
                "'reward-classifier' rewards ar-grpo (align.ar_grpo.rewards.class_likelihood), so it must not score.",
            )
        if "{class}" not in a.ar_grpo.prompt and (rewards.clip_score > 0 or rewards.hpsv2 > 0):
            yield "align.ar_grpo.prompt", "the prompt of a class needs a place for its name, {class}."
    if a.reward_network in p.score.extractors:
        yield "score.extractors", f"'{a.reward_network}' rewards the alignment, so it must not score it."


def _sampling(p: Params) -> Iterator[Problem]:
    s = p.sample
    if _repeats(s.guidance_scales):
        yield "sample.guidance_scales", TWICE
    if s.temperature in s.control_temperatures:
        yield "sample.control_temperatures", f"temperature {s.temperature} is sampled anyway."
    if _repeats((s.temperature, *s.control_temperatures, *p.rivals.temperatures)):
        yield (
            "rivals.temperatures",
            "an entry stands twice, or is sampled anyway (sample.temperature, sample.control_temperatures).",
        )


def _scoring(p: Params) -> Iterator[Problem]:
    """What would otherwise end the last stage, after all the others have done their work."""
    for name in ("extractors", "reference_splits"):
        if _repeats(getattr(p.score, name)):
            yield f"score.{name}", TWICE
    needed = max(FEWEST_IMAGES, p.score.is_splits)
    if p.task == "c2i" and p.sample.count < needed:
        yield "sample.count", f"scores need {needed} images of a set at least (score.is_splits is {p.score.is_splits})."
    if p.score.reference_batch is None:
        for split in p.score.reference_splits:
            if p.subset.splits.get(split, FEWEST_IMAGES) < FEWEST_IMAGES:
                yield "subset.splits", f"scores need {FEWEST_IMAGES} images of {quoted(split)} at least."


def _ablations(p: Params) -> Iterator[Problem]:
    for name in type(p.ablations).model_fields:
        if _repeats(getattr(p.ablations, name)):
            yield f"ablations.{name}", TWICE
    terms = tuple(type(p.align.reward).model_fields)
    for objective in p.ablations.objectives:
        if objective != "prior" and not set(objective.split("+")) <= set(terms):
            yield (
                "ablations.objectives",
                f"{quoted(objective)} is neither prior nor made of {', '.join(terms)}, joined by +.",
            )
