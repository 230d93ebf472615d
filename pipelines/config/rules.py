"""What ties the parameters of params.yaml together; the types and limits of each stand in `params`, what variants need
in `pipelines.config.variant_rules`.

A rule gives (key, problem) where it does not hold. All broken rules are reported at once.
"""

from collections.abc import Iterator

from pipelines.config.params import Params
from vapi_core.models.families import FAMILIES
from vapi_core.sources import SOURCES

Problem = tuple[str, str]  # the key, and what is wrong with it

TWICE = "an entry stands twice."
FEWEST_IMAGES = 4  # precision and recall look at the third nearest neighbour


def broken_rules(params: Params) -> list[Problem]:
    """Every rule between parameters that does not hold."""
    if unknown := list(_names(params)):
        return unknown
    rules = (_subset, _task, _family, _classifiers, _tokenizer, _generator, _batches, _sampling, _scoring)
    return [problem for rule in rules for problem in rule(params)]


def repeats(values: tuple) -> bool:
    """Whether an entry stands twice."""
    return len(set(values)) != len(values)


def _names(p: Params) -> Iterator[Problem]:
    """Without a source and a family there is nothing to ask."""
    if p.subset.source not in SOURCES:
        yield "subset.source", f"there is no source '{p.subset.source}'; there are {', '.join(SOURCES)}."
    if p.generator.family not in FAMILIES:
        yield "generator.family", f"there is no family '{p.generator.family}'; there are {', '.join(FAMILIES)}."


def _subset(p: Params) -> Iterator[Problem]:
    source = SOURCES[p.subset.source]
    if (p.subset.path is not None) != source.path:
        problem = "a source that lies on disk, as a folder does, needs a path, and no other has one; the source is"
        yield "subset.path", f"{problem} {p.subset.source}."
    if (p.subset.dataset is not None) != source.dataset:
        yield "subset.dataset", "the source `dataset` needs it, and no other has a use for it: null."
    classifiers = [c for c in (p.classifiers.reward, p.classifiers.scorer) if c is not None]
    for split in {"train", *p.score.reference_splits, *(c.split for c in classifiers)}:
        if split not in p.subset.splits:
            yield "subset.splits", f"the split '{split}' is used but not defined."


def _task(p: Params) -> Iterator[Problem]:
    """What `task` asks of the other parameters."""
    t2i, scenes = p.task == "t2i", p.subset.source == "scenes"
    sources = [name for name, s in SOURCES.items() if (s.captioned if t2i else s.labelled) is not None]
    if p.subset.source not in sources:
        yield "subset.source", f"task {p.task} needs one of {', '.join(sources)}, not {p.subset.source}."
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


def _family(p: Params) -> Iterator[Problem]:
    """The generator's family reads its own kind of captions and of checkpoints."""
    family = FAMILIES[p.generator.family]
    encoder = None if p.captions is None else p.captions.encoder
    if encoder is not None and encoder not in family.encoders:
        known = ", ".join(family.encoders)
        yield "captions.encoder", f"a generator of the family {p.generator.family} reads {known}, not {encoder}."
    if encoder is None and not family.classes:
        yield "task", f"a generator of the family {p.generator.family} knows no classes: t2i."
    if p.captions is not None and p.captions.truncate and not family.truncates:
        problem = f"prompts of the family {p.generator.family} are never cut off; false, and shorten the captions."
        yield "captions.truncate", problem
    for name, checkpoint in (("tokenizer", p.tokenizer.checkpoint), ("generator", p.generator.checkpoint)):
        if checkpoint is None and not family.trains:
            yield f"{name}.checkpoint", f"the family {p.generator.family} is only imported: a folder or a hub id."


def _classifiers(p: Params) -> Iterator[Problem]:
    """The network that rewards and the one that scores have nothing in common."""
    reward, scorer = p.classifiers.reward, p.classifiers.scorer
    if reward is None and "reward-classifier" in p.score.extractors:
        yield "classifiers.reward", "needed by score.extractors."
    if scorer is None and "scorer-classifier" in p.score.extractors:
        yield "classifiers.scorer", "needed by score.extractors."
    if p.classifiers.uci is None and "uci-classifier" in p.score.extractors:
        yield "classifiers.uci", "needed by score.extractors."
    if p.classifiers.uci is not None and p.subset.source != "mnist":
        yield "classifiers.uci", f"it reads digits, and is for the source mnist, not {p.subset.source}: null."
    if reward is not None and scorer is not None and reward.split == scorer.split:
        yield (
            "classifiers.scorer.split",
            "the network that scores must not learn from the images of the network that rewards.",
        )
    if scorer is not None and scorer.split in p.score.reference_splits:
        problem = f"'{scorer.split}' trains the scorer, so its features of these images are not those of new ones."
        yield "score.reference_splits", problem


def _tokenizer(p: Params) -> Iterator[Problem]:
    t = p.tokenizer
    if t.gray:
        yield "tokenizer.gray", "whether images are gray is read off them; leave it out."
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
    if t.training is not None and t.unquantized_steps >= t.training.steps:
        yield (
            "tokenizer.unquantized_steps",
            f"must be less than tokenizer.training.steps, {t.training.steps}: the rest trains the codebook.",
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
    for name, model in (("tokenizer", p.tokenizer), ("generator", p.generator)):
        if model.training is not None:
            yield from batch_problems(f"{name}.training", model.training.batch_size, model.training.micro_batch_size)


def batch_problems(key: str, batch_size: int, micro_batch_size: int | None, processes: int = 1) -> Iterator[Problem]:
    """A step's batch divides into equal parts for processes, and these into micro-batches."""
    if batch_size % processes != 0:
        problem = f"a batch of {batch_size} ({key}.batch_size) does not divide into {processes} equal parts."
        yield "launch.processes", problem
        return
    share = batch_size // processes
    size = micro_batch_size or share
    if size <= share and share % size != 0:
        problem = f"a process's share of {share} images does not divide into micro-batches of {size}."
        yield f"{key}.micro_batch_size", problem


def _sampling(p: Params) -> Iterator[Problem]:
    if repeats(p.sample.guidance_scales):
        yield "sample.guidance_scales", TWICE
    if repeats(p.align.seeds):
        yield "align.seeds", TWICE


def _scoring(p: Params) -> Iterator[Problem]:
    """What would otherwise end the last stage, after all the others have done their work."""
    for name in ("extractors", "reference_splits"):
        if repeats(getattr(p.score, name)):
            yield f"score.{name}", TWICE
    needed = max(FEWEST_IMAGES, p.score.is_splits)
    if p.task == "c2i" and p.sample.count < needed:
        yield "sample.count", f"scores need {needed} images of a set at least (score.is_splits is {p.score.is_splits})."
    if p.score.reference_batch is None:
        for split in p.score.reference_splits:
            if p.subset.splits.get(split, FEWEST_IMAGES) < FEWEST_IMAGES:
                yield "subset.splits", f"scores need {FEWEST_IMAGES} images of '{split}' at least."
