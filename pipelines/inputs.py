"""What several stages read: tokens with their images, the generators, and the network that rewards."""

import json
import operator
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pipelines.params import AlignParams, ArGrpoParams
from pipelines.paths import CAPTIONS, CLASSIFIERS, PROMPTS, SUBSET, TOKENIZER, TOKENS, remedy
from vapi_core.alignment.data import AlignmentData, Conditions
from vapi_core.alignment.external_reward import ClassLikelihood, ExternalReward, PromptSimilarity
from vapi_core.alignment.reward import PerceptualDistance
from vapi_core.data.cache import TokenCache
from vapi_core.data.captions import CaptionCache, CaptionConditions
from vapi_core.data.subset import (
    MANIFEST,
    Subset,
    entries_of,
    open_array,
    read_manifest,
    read_subset_text,
    subset_hash,
)
from vapi_core.errors import FileError
from vapi_core.files import split_lines
from vapi_core.models.checkpoints import load_model, model_hash
from vapi_core.models.janus import PromptConditions, load_prompt_tokenizer
from vapi_core.models.perceptual import FeatureDistance, load_lpips
from vapi_core.models.policy import Policy
from vapi_core.models.tokenizer import Tokenizer
from vapi_core.scoring.classifier import load_classifier
from vapi_core.scoring.geneval_folder import Prompt

IMAGES, LABELS = "images.npy", "labels.npy"  # of a set of samples


def open_split(name: str, device: torch.device) -> AlignmentData:
    """Tokens, conditions (classes or captions) and images of one split, checked to belong together."""
    subset = Subset.open(SUBSET)
    cache = TokenCache.open(
        TOKENS,
        tokenizer_sha256=model_hash(TOKENIZER, "tokenizer", remedy(TOKENIZER)),
        subset_sha256=subset_hash(SUBSET),
    )
    tokens, labels = cache.split(name)
    images, _ = subset.split(name)
    if subset.captions is None:
        return AlignmentData(tokens, labels, images, device)
    return AlignmentData(tokens, caption_conditions(subset.captions[slice(*subset.splits[name])]), images, device)


def open_captions() -> CaptionCache:
    """The text features of captions and prompts, as the one encoder of the DAG made them."""
    return CaptionCache.open(CAPTIONS, encoder_fingerprint=None)


def caption_conditions(captions: Sequence[str]) -> Conditions:
    """These captions or prompts as conditions: text features of LlamaGen, prompts of Janus."""
    if (CAPTIONS / "tokenizer.json").is_file():
        tokenizer = load_prompt_tokenizer(CAPTIONS)
        return PromptConditions(tokenizer.token_ids(captions), tokenizer.pad_id)
    cache = open_captions()
    return CaptionConditions(cache, cache.rows(captions))


def open_prompts() -> list[Prompt]:
    """The prompts of a text-to-image run, checked when they were written; none for class to image.

    Raises:
        FileError: the subset or the prompts are missing or damaged.
    """
    text = read_subset_text(SUBSET, PROMPTS.name)
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


def read_scores(path: Path) -> pd.DataFrame:
    """A table that a stage wrote. Raises FileError where it is missing or damaged."""
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        raise FileError(path, "the file is missing.", remedy(path.parent)) from None
    except ValueError as error:  # pandas' errors of parsing are
        raise FileError(path, f"the file is damaged ({error}).", remedy(path.parent)) from None


def open_perceptual(params: AlignParams, device: torch.device) -> PerceptualDistance:
    """The network behind the reward's perceptual term, frozen."""
    if params.reward_network == "lpips":
        return load_lpips(params.lpips_checkpoint).to(device)
    return FeatureDistance(load_classifier(CLASSIFIERS / "reward", device), params.reward_first_stage).to(device)


def readable_class(name: str) -> str:
    """What a prompt calls a class. ImageNet's folders are named by wordnet ids (n01440764), its data sets by synonyms
    (tench, Tinca tinca): the first one is taken."""
    if re.fullmatch(r"n\d{8}", name):
        from timm.data import ImageNetInfo

        name = ImageNetInfo().label_name_to_description(name)
    return name.partition(",")[0]


def open_external_rewards(params: ArGrpoParams, device: torch.device) -> list[tuple[float, ExternalReward]]:
    """The weighted reward models of AR-GRPO, frozen, for the items of the split "train".

    A prompt is the caption of an item, or a sentence with the name of its class where there are no captions.
    """
    subset = Subset.open(SUBSET)
    _, labels = subset.split("train")
    if subset.captions is not None:
        prompts = list(subset.captions[slice(*subset.splits["train"])])
    else:
        prompts = [params.prompt.replace("{class}", readable_class(subset.classes[label])) for label in labels]
    rewards: list[tuple[float, ExternalReward]] = []
    if weight := params.rewards.class_likelihood:
        rewards.append((weight, ClassLikelihood(load_classifier(CLASSIFIERS / "reward", device), labels)))
    for name, checkpoint in (("clip_score", params.clip_checkpoint), ("hpsv2", params.hpsv2_checkpoint)):
        if weight := getattr(params.rewards, name):
            from vapi_core.scoring.preference import load_preference_model  # imports open_clip, which takes seconds

            model = load_preference_model(name.removesuffix("_score"), checkpoint, device)
            rewards.append((weight, PromptSimilarity(name, model, prompts)))
    return rewards
