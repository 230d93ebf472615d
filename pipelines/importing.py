"""Models that are imported: LlamaGen's from a file, Janus from a folder or the hub's cache; their shape must be the params'."""

from collections.abc import Mapping
from typing import Any

from pipelines.config.params import Params, grid_side
from pipelines.config.rules import is_janus
from vapi_core.errors import ParameterError
from vapi_core.files import sha256_file
from vapi_core.models.janus.checkpoints import load_janus, load_janus_tokenizer
from vapi_core.models.janus.policy import Janus
from vapi_core.models.llamagen.checkpoints import import_official
from vapi_core.models.llamagen.generator import Generator
from vapi_core.models.llamagen.tokenizer import Tokenizer


def import_tokenizer(checkpoint: str, tokenizer: Tokenizer) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of a checkpoint, of the shape of `tokenizer`, and what its JSON should say of its origin.

    Raises:
        FileError: the checkpoint is missing, damaged or of another shape.
        ParameterError: the VQ model of a Janus is of another shape.
    """
    if not is_janus(checkpoint):
        return import_official(checkpoint, tokenizer), {"imported_sha256": sha256_file(checkpoint)}
    imported = load_janus_tokenizer(checkpoint)
    names = ("codebook_size", "codebook_dim", "base_channels", "encoder_multipliers", "decoder_multipliers")
    shape = {name: getattr(imported.config, name) for name in (*names, "res_blocks", "z_channels", "norm_groups")}
    _check_shape(checkpoint, "tokenizer", shape, vars(tokenizer.config))
    return imported, {"imported_from": checkpoint}


def import_generator(checkpoint: str, generator: Generator) -> dict[str, str]:
    """Fills a LlamaGen generator from a checkpoint file; returns what its JSON should say of its origin.

    Raises:
        FileError: the checkpoint is missing, damaged or of another shape.
    """
    import_official(checkpoint, generator)
    return {"imported_sha256": sha256_file(checkpoint)}


def import_janus(params: Params) -> tuple[Janus, dict[str, str]]:
    """The policy of `generator.checkpoint`, and what its JSON should say of its origin.

    Raises:
        FileError: the checkpoint is missing or damaged.
        ParameterError: it is of another shape.
    """
    checkpoint = params.generator.checkpoint
    assert checkpoint is not None
    policy = load_janus(checkpoint)
    text = policy.language_model.config
    shape = {"dim": text.hidden_size, "layers": text.num_hidden_layers, "heads": text.num_attention_heads}
    _check_shape(checkpoint, "generator", shape, params.generator.model_dump())
    if policy.config.codebook_size != params.tokenizer.codebook_size:
        problem = f"{checkpoint} draws from {policy.config.codebook_size} codes."
        raise ParameterError("tokenizer.codebook_size", problem)
    if policy.config.grid != grid_side(params):
        pixels = policy.config.grid * params.tokenizer.config().downsample
        raise ParameterError("subset.image_size", f"{checkpoint} makes images of {pixels} pixels.")
    return policy, {"imported_from": checkpoint}


def _check_shape(checkpoint: str, section: str, found: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for name, value in found.items():
        if given[name] != value:
            raise ParameterError(f"{section}.{name}", f"{checkpoint} has {value}, not {given[name]}.")
