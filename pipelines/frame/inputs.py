"""What several stages read: tokens with their images, conditions, generators, image sets and scores."""

import json
import operator
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipelines.config.paths import CAPTIONS, PROMPTS, SUBSET, TOKENIZER, TOKENS, remedy
from vapi_core.arrays import MANIFEST, entries_of, open_array, read_manifest
from vapi_core.data.batches import AlignmentData
from vapi_core.data.cache import TokenCache
from vapi_core.data.subset import Subset, read_subset_text, subset_hash
from vapi_core.files import split_lines
from vapi_core.models.checkpoints import load_model, model_hash
from vapi_core.models.families import FAMILIES
from vapi_core.models.llamagen.tokenizer import Tokenizer
from vapi_core.models.policy import Conditions, Policy
from vapi_core.scoring.geneval.folder import Prompt

IMAGES, LABELS = "images.npy", "labels.npy"  # of a set of samples


def open_subset() -> Subset:
    """The subset of the run."""
    return Subset.open(SUBSET, remedy(SUBSET))


def open_split(name: str, device: torch.device, family: str) -> AlignmentData:
    """Tokens, conditions (classes, or captions as this family reads them) and images of one split, checked to belong
    together."""
    subset = open_subset()
    cache = TokenCache.open(
        TOKENS,
        tokenizer_sha256=model_hash(TOKENIZER, "tokenizer", remedy(TOKENIZER)),
        subset_sha256=subset_hash(SUBSET, remedy(SUBSET)),
        remedy=remedy(TOKENS),
    )
    tokens, labels = cache.split(name)
    images, _ = subset.split(name)
    if subset.captions is None:
        return AlignmentData(tokens, labels, images, device)
    conditions = caption_conditions(subset.captions[slice(*subset.splits[name])], family)
    return AlignmentData(tokens, conditions, images, device)


def caption_conditions(captions: Sequence[str], family: str) -> Conditions:
    """These captions or prompts as conditions of a generator of this family."""
    return FAMILIES[family].open_conditions(CAPTIONS, captions, remedy(CAPTIONS))


def open_prompts() -> list[Prompt]:
    """The prompts of a text-to-image run, checked when they were written; none for class to image.

    Raises:
        FileError: the subset or the prompts are missing or damaged.
    """
    text = read_subset_text(SUBSET, PROMPTS.name, remedy(SUBSET))
    return [] if text is None else [Prompt(json.loads(line)) for line in split_lines(text)]


def open_tokenizer(device: torch.device, directory: Path = TOKENIZER) -> Tokenizer:
    """The frozen tokenizer, or one that was post-trained."""
    return load_model(directory, "tokenizer", remedy(directory)).to(device).requires_grad_(False)


def open_generator(directory: Path, device: torch.device) -> Policy:
    """A generator, base or aligned."""
    return load_model(directory, "generator", remedy(directory)).to(device)


def open_samples(directory: Path, advice: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W, 3], memory-mapped, and labels int64 [N] of a finished set, after hashing its files again.

    Args:
        advice: what an error message says; by default the command that draws the set.

    Raises:
        FileError: a file is missing, damaged, or not what the manifest says.
    """
    advice = remedy(directory) if advice is None else advice
    path = directory / MANIFEST
    manifest = read_manifest(path, "samples", advice)
    with entries_of(path, advice):
        (count, height, width, channels), sha256 = map(operator.index, manifest["shape"]), manifest["sha256"]
        images_sha256, labels_sha256 = sha256[IMAGES], sha256[LABELS]
    images = open_array(directory / IMAGES, (count, height, width, channels), np.uint8, advice, images_sha256)
    return images, np.array(open_array(directory / LABELS, (count,), np.int64, advice, labels_sha256))


def readable_class(name: str) -> str:
    """What a prompt calls a class. ImageNet's folders are named by wordnet ids (n01440764), its data sets by synonyms
    (tench, Tinca tinca): the first one is taken."""
    if re.fullmatch(r"n\d{8}", name):
        from timm.data import ImageNetInfo

        name = ImageNetInfo().label_name_to_description(name)
    return name.partition(",")[0]


def item_prompts(split: str, template: str) -> list[str]:
    """A prompt of every item of a split: its caption, or `template` with its class's name in place of {class}."""
    subset = open_subset()
    if subset.captions is not None:
        return list(subset.captions[slice(*subset.splits[split])])
    _, labels = subset.split(split)
    return [template.replace("{class}", readable_class(subset.classes[label])) for label in labels]
