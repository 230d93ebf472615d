"""Janus-Pro as a family: checkpoints of the hub, and captions as prompts, for which its text tokenizer is kept."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vapi_core.errors import ParameterError
from vapi_core.models.family import CaptionConfig, Encode, Family, Origin, check_shape
from vapi_core.models.janus.checkpoints import load_janus, load_janus_tokenizer, pixels_of_a_token
from vapi_core.models.janus.policy import Janus, JanusConfig
from vapi_core.models.janus.prompts import JANUS_PRO_1B, PromptConditions, load_prompt_tokenizer
from vapi_core.models.llamagen.generator import GeneratorConfig
from vapi_core.models.llamagen.tokenizer import Tokenizer, TokenizerConfig
from vapi_core.models.policy import Prompts

SHAPE_OF_TOKENIZER = (
    "codebook_size",
    "codebook_dim",
    "base_channels",
    "encoder_multipliers",
    "decoder_multipliers",
    "res_blocks",
    "z_channels",
    "norm_groups",
)


def import_tokenizer(checkpoint: str, config: TokenizerConfig) -> tuple[Tokenizer, Origin]:
    tokenizer = load_janus_tokenizer(checkpoint)
    shape = {name: getattr(tokenizer.config, name) for name in SHAPE_OF_TOKENIZER}
    check_shape(checkpoint, "tokenizer", shape, config)
    return tokenizer, {"imported_from": checkpoint}


def import_generator(checkpoint: str, config: GeneratorConfig) -> tuple[Janus, Origin]:
    policy = load_janus(checkpoint)
    text = policy.language_model.config
    shape = {"dim": text.hidden_size, "layers": text.num_hidden_layers, "heads": text.num_attention_heads}
    check_shape(checkpoint, "generator", shape, config)
    if policy.config.codebook_size != config.codebook_size:
        problem = f"{checkpoint} draws from {policy.config.codebook_size} codes."
        raise ParameterError("tokenizer.codebook_size", problem)
    if policy.config.grid != config.grid:
        pixels = policy.config.grid * pixels_of_a_token(policy.config)
        raise ParameterError("subset.image_size", f"{checkpoint} makes images of {pixels} pixels.")
    return policy, {"imported_from": checkpoint}


def write_texts(
    directory: Path,
    texts: Sequence[str],
    trained: Sequence[str],
    config: CaptionConfig,
    device: torch.device,
    advance: Callable[[int], object],
) -> dict[str, float]:
    """The texts are conditions: the folder holds their tokenizer, and no text may be longer than the limit."""
    tokenizer = load_prompt_tokenizer(config.checkpoint or JANUS_PRO_1B)
    lengths = tokenizer.check_length(list(dict.fromkeys(texts)), config.tokens)
    tokenizer.save(directory)
    advance(len(lengths))
    return {"captions": len(lengths), "longest_prompt": max(lengths)}


def open_conditions(directory: Path, texts: Sequence[str], remedy: str) -> PromptConditions:
    tokenizer = load_prompt_tokenizer(directory, remedy)
    return PromptConditions(tokenizer.token_ids(texts), tokenizer.pad_id)


def open_encoder(
    directory: Path, texts: Sequence[str], config: CaptionConfig, device: torch.device, remedy: str
) -> Encode:
    tokenizer = load_prompt_tokenizer(directory, remedy)
    tokenizer.check_length(list(dict.fromkeys(texts)), config.tokens)

    def encode(batch: Sequence[str]) -> Prompts:
        prompts = tokenizer.encode(batch)
        return Prompts(prompts.tokens.to(device), prompts.mask.to(device))

    return encode


def caption_shape(directory: Path, remedy: str) -> dict[str, int]:
    """Nothing: a prompt may have any length."""
    return {}


JANUS = Family(
    policy=Janus,
    config=JanusConfig,
    encoders=("janus",),
    classes=False,
    truncates=False,
    trains=False,
    import_tokenizer=import_tokenizer,
    import_generator=import_generator,
    write_texts=write_texts,
    open_conditions=open_conditions,
    open_encoder=open_encoder,
    caption_shape=caption_shape,
)
