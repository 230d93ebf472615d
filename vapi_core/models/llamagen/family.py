"""LlamaGen as a family: official `.pt` files, and captions as text features that are made once and cached."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vapi_core.files import sha256_file
from vapi_core.models.captions.cache import CaptionCache, CaptionConditions, write_caption_cache
from vapi_core.models.captions.encoders import (
    FLAN_T5_XL,
    LongCaptionError,
    TextEncoder,
    count_tokens,
    encode_captions,
    find_long,
    load_flan_t5,
    load_minilm,
)
from vapi_core.models.captions.standardization import Standardization, measure_features, standardize
from vapi_core.models.family import CaptionConfig, Encode, Family, Origin
from vapi_core.models.llamagen.checkpoints import import_official
from vapi_core.models.llamagen.generator import Generator, GeneratorConfig
from vapi_core.models.llamagen.tokenizer import Tokenizer, TokenizerConfig
from vapi_core.models.policy import Captions


def import_tokenizer(checkpoint: str, config: TokenizerConfig) -> tuple[Tokenizer, Origin]:
    return import_official(checkpoint, Tokenizer(config)).eval(), {"imported_sha256": sha256_file(checkpoint)}


def import_generator(checkpoint: str, config: GeneratorConfig) -> tuple[Generator, Origin]:
    return import_official(checkpoint, Generator(config)).eval(), {"imported_sha256": sha256_file(checkpoint)}


def load_encoder(config: CaptionConfig, device: torch.device) -> TextEncoder:
    """The text encoder of a configuration, its features as they are."""
    if config.encoder == "minilm":
        return load_minilm(limit=config.tokens, device=device)
    return load_flan_t5(config.checkpoint or FLAN_T5_XL, limit=config.tokens, device=device)


def write_texts(
    directory: Path,
    texts: Sequence[str],
    trained: Sequence[str],
    config: CaptionConfig,
    device: torch.device,
    advance: Callable[[int], object],
) -> dict[str, float]:
    encoder = load_encoder(config, device)
    measured = measure_features(encoder, trained, truncate=config.truncate) if config.standardize else None
    if measured is not None:
        encoder = standardize(encoder, measured)
    report = write_caption_cache(
        directory, texts, encoder, truncate=config.truncate, dtype=config.dtype, advance=advance
    )
    if measured is not None:
        measured.save(directory)
    return {
        "captions": report.unique,
        "captions_truncated": len(report.truncated),
        "captions_per_second": report.captions_per_second,
        "caption_tokens_per_second": report.tokens_per_second,
    }


def open_conditions(directory: Path, texts: Sequence[str], remedy: str) -> CaptionConditions:
    cache = CaptionCache.open(directory, encoder_fingerprint=None, remedy=remedy)
    return CaptionConditions(cache, cache.rows(texts))


def open_encoder(
    directory: Path, texts: Sequence[str], config: CaptionConfig, device: torch.device, remedy: str
) -> Encode:
    encoder = load_encoder(config, device)
    if config.standardize:
        encoder = standardize(encoder, Standardization.open(directory, encoder.dim, remedy))
    unique, dtype = list(dict.fromkeys(texts)), getattr(torch, config.dtype)
    if (long := find_long(encoder, unique, count_tokens(encoder, unique))) and not config.truncate:
        raise LongCaptionError(long, len(unique), encoder.limit)

    def encode(batch: Sequence[str]) -> Captions:
        captions = encode_captions(encoder, batch, truncate=config.truncate)
        return Captions(captions.features.to(dtype), captions.mask)  # in the precision of the cache

    return encode


def caption_shape(directory: Path, remedy: str) -> dict[str, int]:
    cache = CaptionCache.open(directory, encoder_fingerprint=None, remedy=remedy)
    return {"caption_dim": cache.dim, "caption_tokens": cache.limit}


LLAMAGEN = Family(
    policy=Generator,
    config=GeneratorConfig,
    encoders=("minilm", "flan-t5-xl"),
    classes=True,
    truncates=True,
    trains=True,
    import_tokenizer=import_tokenizer,
    import_generator=import_generator,
    write_texts=write_texts,
    open_conditions=open_conditions,
    open_encoder=open_encoder,
    caption_shape=caption_shape,
)
