"""Checkpoints of Janus, read and written: its policy, and its VQ model as our tokenizer.

They are in the format of transformers (`deepseek-community/Janus-Pro-1B`) or the official one
(`deepseek-ai/Janus-Pro-1B`), a folder or a hub id that is in the local cache. The VQ model is LlamaGen's VQ-16, so it
becomes our `Tokenizer`: transformers' own `encode` searches the nearest code without the official l2 normalisation and
gives other tokens (reference `janus/transformers_renames.json`: 19 % agree on random weights).
"""

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vapi_core.errors import FileError
from vapi_core.files import parse_json
from vapi_core.models.janus.policy import Janus, JanusConfig
from vapi_core.models.janus.prompts import JANUS_PRO_1B, REMEDY, first_line, load_prompt_tokenizer
from vapi_core.models.llamagen.tokenizer import OFFICIAL_USAGE_BUFFER, Tokenizer, TokenizerConfig
from vapi_core.models.weights import check_expansion, check_loaded, load_strictly, read_state_dict

OFFICIAL_TYPE = "multi_modality"  # "model_type" of the official config.json
PARTS = ("language_model", "generation_embeddings", "generation_aligner", "generation_head")  # of the image path
T = TypeVar("T")


def load_janus(path: Path | str = JANUS_PRO_1B) -> Janus:
    """The policy of a checkpoint, float32, in eval mode.

    Raises:
        FileError: no such checkpoint, or weights that are damaged, missing or of another shape.
    """
    pad_id = load_prompt_tokenizer(path).pad_id
    folder, description = _open_checkpoint(path)
    if description["model_type"] == OFFICIAL_TYPE:
        weights = rename_official(
            _read_tensors(folder, ("language_model.model.", "gen_embed.", "gen_aligner.", "gen_head."))
        )
        config = _official_config(folder, description, weights, pad_id)
    else:
        model = _load_transformers(path)
        c = model.config
        config = JanusConfig(
            c.vq_config.num_patches, c.vq_config.num_embeddings, pad_id, plain(c.text_config), plain(c.vq_config)
        )
        weights = {k: t for k, t in model.model.state_dict().items() if k.startswith(PARTS)}
    policy = Janus(config)
    load_strictly(policy, weights, folder)
    return policy.eval()


def load_janus_tokenizer(path: Path | str = JANUS_PRO_1B) -> Tokenizer:
    """The VQ model of a checkpoint as our tokenizer, float32, in eval mode.

    Raises:
        FileError: as `load_janus`.
    """
    folder, description = _open_checkpoint(path)
    if description["model_type"] == OFFICIAL_TYPE:
        config = TokenizerConfig()  # the official code builds VQ-16 whatever the configuration says
        weights = {
            k.removeprefix("gen_vision_model."): t for k, t in _read_tensors(folder, ("gen_vision_model.",)).items()
        }
    else:
        vq = _load_transformers(path).model.vqmodel
        config = tokenizer_config(vq.config)
        weights = rename_vq(vq.state_dict())
    tokenizer = Tokenizer(config)
    load_strictly(tokenizer, weights, folder)
    return tokenizer.eval()


def export_janus(policy: Janus, base: Path | str, directory: Path | str) -> None:
    """Writes the whole checkpoint `base`, which is in the format of transformers, with the policy's weights in it.

    For users, who so take an aligned policy to transformers (docs/text-to-image.md).

    Raises:
        FileError: `base` cannot be loaded, or is of another shape.
    """
    model = _load_transformers(base)
    own = model.model.state_dict()
    weights = policy.state_dict()
    if unlike := [name for name, t in weights.items() if name not in own or own[name].shape != t.shape]:
        raise FileError(base, f"the policy was not made from this checkpoint: {unlike[0]} has no place in it.")
    model.model.load_state_dict(weights, strict=False)
    model.save_pretrained(directory)
    load_prompt_tokenizer(base).save(directory)


def rename_official(weights: dict[str, T]) -> dict[str, T]:
    """Official names of the image path to those of transformers, without its leading "model."."""

    def renamed(name: str) -> str:
        for old, new in (
            (r"^language_model\.model\.", "language_model."),
            (r"^gen_embed\.", "generation_embeddings."),
            (r"^gen_head\.output_mlp_projector\.", "generation_head.proj_out."),
            (r"^gen_head\.", "generation_head."),
            (r"^gen_aligner\.layers\.0\.", "generation_aligner.fc1."),
        ):
            name = re.sub(old, new, name)
        # the official aligner counts its activations too: layers 2, 4, ... are the hidden ones
        return re.sub(
            r"^gen_aligner\.layers\.(\d+)\.", lambda m: f"generation_aligner.hidden_layers.{int(m[1]) // 2 - 1}.", name
        )

    return {renamed(name): t for name, t in weights.items()}


def rename_vq(weights: dict[str, T]) -> dict[str, T | Tensor]:
    """Names of transformers' VQ model to the official ones of our `Tokenizer`; adds the usage buffer that it lacks."""
    middle = {"block_1": "0", "attn_1": "1", "block_2": "2"}

    def renamed(name: str) -> str:
        name = re.sub(r"^(encoder\.down|decoder\.up)\.", lambda m: m[1].split(".")[0] + ".conv_blocks.", name)
        name = re.sub(r"(conv_blocks\.\d+)\.block\.", r"\1.res.", name)
        return re.sub(r"\.mid\.(block_1|attn_1|block_2)\.", lambda m: f".mid.{middle[m[1]]}.", name)

    usage = {"quantize.codebook_used": torch.zeros(OFFICIAL_USAGE_BUFFER)}
    return {renamed(name): t for name, t in weights.items()} | usage


def tokenizer_config(vq: Any) -> TokenizerConfig:
    """Our configuration of a `JanusVQVAEConfig`."""
    multipliers = tuple(vq.channel_multiplier)
    return TokenizerConfig(
        codebook_size=vq.num_embeddings,
        codebook_dim=vq.embed_dim,
        base_channels=vq.base_channels,
        encoder_multipliers=multipliers,
        decoder_multipliers=multipliers,
        res_blocks=vq.num_res_blocks,
        z_channels=vq.latent_channels,
    )


def pixels_of_a_token(config: JanusConfig) -> int:
    """Pixels of an image side per token of a grid side."""
    from transformers import JanusVQVAEConfig

    return tokenizer_config(JanusVQVAEConfig(**config.vq)).downsample


def plain(config: Any) -> dict[str, Any]:
    """A transformers configuration as plain data."""
    return json.loads(config.to_json_string(use_diff=False))


def _official_config(folder: Path, description: dict[str, Any], weights: dict[str, Tensor], pad_id: int) -> JanusConfig:
    """The configuration of an official checkpoint; what `config.json` leaves to code comes from the weights."""
    try:
        vision = description.get("vision_config", {}).get("params", {})
        grid = vision.get("image_size", 384) // 16  # VQ-16, always
        size, dim = weights["generation_embeddings.weight"].shape
        hidden = weights["generation_aligner.fc1.weight"].shape[0]
        depth = 1 + len(
            {name.split(".")[2] for name in weights if name.startswith("generation_aligner.hidden_layers.")}
        )
        head = weights["generation_head.proj_out.weight"].shape[0]
        text = {
            k: v for k, v in description["language_config"].items() if k not in ("model_type", "_attn_implementation")
        }
    except KeyError as error:
        raise FileError(folder, f"the official checkpoint lacks {error}.", REMEDY) from None
    vq = {"num_embeddings": size, "embed_dim": dim, "projection_dim": hidden, "num_hidden_layers": depth}
    return JanusConfig(grid, size, pad_id, text, vq | {"image_token_embed_dim": head, "num_patches": grid})


def _open_checkpoint(path: Path | str) -> tuple[Path, dict[str, Any]]:
    """Folder and `config.json` of a checkpoint."""
    from transformers.utils import cached_file

    try:
        file = str(cached_file(str(path), "config.json", local_files_only=True))
        description = parse_json(Path(file).read_bytes())
        kind = description["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(path, f"no checkpoint here ({first_line(error)}).", REMEDY) from None
    if kind not in ("janus", OFFICIAL_TYPE):
        raise FileError(path, f"this is a model of type '{kind}', not a Janus.", REMEDY)
    return Path(file).parent, description


def _load_transformers(path: Path | str) -> Any:
    from safetensors import SafetensorError
    from transformers import JanusForConditionalGeneration

    folder, _ = _open_checkpoint(path)
    check_expansion(folder)
    try:
        loaded: Any = JanusForConditionalGeneration.from_pretrained(
            str(path), local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
        model, found = loaded
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise FileError(path, f"no Janus can be loaded from here ({first_line(error)}).", REMEDY) from None
    if missing := sorted(found["missing_keys"]):  # transformers would fill these with random numbers
        raise FileError(path, f"{len(missing)} of the weights are missing, {missing[0]} first.", REMEDY)
    check_loaded(model, folder)
    return model


def _read_tensors(folder: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of these prefixes from all weight files of an official checkpoint."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise FileError(folder, "there are no weights in this folder (*.safetensors or *.bin).", REMEDY)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= {name: t for name, t in read_state_dict(file).items() if name.startswith(prefixes)}
    return tensors
