"""What several stages read: tokens with their images, the generators, and the network that rewards."""

from pathlib import Path

import torch

from pipelines.params import AlignParams
from pipelines.paths import CLASSIFIERS, SUBSET, TOKENIZER, TOKENS
from vapi_core.alignment.data import AlignmentData
from vapi_core.alignment.reward import PerceptualDistance
from vapi_core.data.cache import TokenCache
from vapi_core.data.subset import Subset, subset_hash
from vapi_core.models.checkpoints import load_model, model_hash
from vapi_core.models.generator import Generator
from vapi_core.models.perceptual import FeatureDistance, load_lpips
from vapi_core.models.tokenizer import Tokenizer
from vapi_core.scoring.classifier import load_classifier


def open_split(name: str, device: torch.device) -> AlignmentData:
    """Tokens, classes and images of one split, checked to belong together."""
    subset = Subset.open(SUBSET)
    cache = TokenCache.open(
        TOKENS, tokenizer_sha256=model_hash(TOKENIZER, "tokenizer"), subset_sha256=subset_hash(SUBSET)
    )
    tokens, labels = cache.split(name)
    images, _ = subset.split(name)
    return AlignmentData(tokens, labels, images, device)


def open_tokenizer(device: torch.device) -> Tokenizer:
    """The frozen tokenizer."""
    tokenizer = load_model(TOKENIZER, "tokenizer", "To make it anew, run `dvc repro tokenizer`.")
    return tokenizer.to(device).requires_grad_(False)


def open_generator(directory: Path, device: torch.device) -> Generator:
    """A generator, base or aligned."""
    return load_model(directory, "generator", f"To make it anew, run `dvc repro` for {directory}.").to(device)


def open_perceptual(params: AlignParams, device: torch.device) -> PerceptualDistance:
    """The network behind the reward's perceptual term, frozen."""
    if params.reward_network == "lpips":
        return load_lpips(params.lpips_checkpoint).to(device)
    return FeatureDistance(load_classifier(CLASSIFIERS / "reward", device)).to(device)
