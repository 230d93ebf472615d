"""A generator and its tokenizer from any checkpoint: a folder of ours, LlamaGen's official `.pt` files, or a Janus.

LlamaGen's files hold tensors alone. What their shapes leave open is asked for: the size of the images, and the heads of
a transformer whose width and depth are no official model's.
"""

from collections import Counter
from pathlib import Path

from torch import Tensor

from vapi_core.errors import FileError, ParameterError
from vapi_core.models.checkpoints import load_model
from vapi_core.models.janus.checkpoints import load_janus, load_janus_tokenizer
from vapi_core.models.llamagen.checkpoints import import_official
from vapi_core.models.llamagen.generator import OFFICIAL_GENERATORS, Generator, GeneratorConfig
from vapi_core.models.llamagen.tokenizer import Tokenizer, TokenizerConfig
from vapi_core.models.policy import Policy
from vapi_core.models.weights import read_state_dict

FILES = (".pt", ".pth", ".safetensors")  # LlamaGen's; anything else is a folder, or an id of the hub
Shapes = dict[str, tuple[int, ...]]


def open_tokenizer(checkpoint: str) -> Tokenizer:
    """The tokenizer of a checkpoint, in eval mode.

    Raises:
        FileError: there is none, or it is damaged.
    """
    if _is_file(checkpoint):
        shapes = read_shapes(checkpoint)
        return import_official(checkpoint, Tokenizer(tokenizer_config(shapes, checkpoint))).eval()
    if _is_ours(checkpoint, "tokenizer"):
        return load_model(checkpoint, "tokenizer")
    return load_janus_tokenizer(checkpoint)


def open_generator(checkpoint: str, downsample: int, image_size: int | None, heads: int | None) -> Policy:
    """The generator of a checkpoint, in eval mode.

    Args:
        downsample: pixels of an image side per token of a grid side, its tokenizer's.
        image_size: pixels of a side, for LlamaGen's files.
        heads: of attention, for LlamaGen's files of no official size.

    Raises:
        FileError: there is none, or it is damaged.
        ParameterError: image size or heads are missing, or cannot be.
    """
    if _is_file(checkpoint):
        if image_size is None:
            raise ParameterError("--image-size", "LlamaGen's files do not have it; say it, e.g. 384 of c2i_XL_384.pt.")
        if image_size < downsample or image_size % downsample:
            raise ParameterError("--image-size", f"it is {image_size}, no multiple of the tokenizer's {downsample}.")
        config = generator_config(read_shapes(checkpoint), checkpoint, image_size // downsample, heads)
        return import_official(checkpoint, Generator(config)).eval()
    policy = load_model(checkpoint, "generator") if _is_ours(checkpoint, "generator") else load_janus(checkpoint)
    if image_size not in (None, pixels := policy.config.grid * downsample):
        raise ParameterError("--image-size", f"{checkpoint} makes images of {pixels} pixels.")
    return policy


def tokenizer_config(shapes: Shapes, path: str) -> TokenizerConfig:
    """The configuration of an official tokenizer, from the shapes of its tensors.

    Raises:
        FileError: these are no tokenizer's.
    """
    try:
        base = shapes["encoder.conv_in.weight"][0]
        codes, dim = shapes["quantize.embedding.weight"]
        multipliers = {part: _widths(shapes, part, base) for part in ("encoder", "decoder")}
        blocks = Counter(name.split(".")[2] for name in shapes if _is_width(name, "encoder"))
        return TokenizerConfig(
            codebook_size=codes,
            codebook_dim=dim,
            base_channels=base,
            encoder_multipliers=multipliers["encoder"],
            decoder_multipliers=multipliers["decoder"][::-1],
            res_blocks=blocks["0"],
            z_channels=shapes["encoder.conv_out.weight"][0],
        )
    except (KeyError, ValueError) as error:
        raise FileError(path, f"this is no tokenizer of LlamaGen's ({error}).") from None


def generator_config(shapes: Shapes, path: str, grid: int, heads: int | None) -> GeneratorConfig:
    """The configuration of an official generator, from the shapes of its tensors.

    Raises:
        FileError: these are no generator's.
        ParameterError: the number of heads is missing, or cannot be.
    """
    try:
        codes, dim = shapes["tok_embeddings.weight"]
        layers = len([name for name in shapes if name.endswith(".attention.wqkv.weight")])
        known = {(d, n): h for d, n, h in OFFICIAL_GENERATORS.values()}
        heads = heads or known.get((dim, layers))
        if heads is None or heads < 1 or dim % heads:
            problem = f"width {dim} and {layers} layers are no official model's; say how many heads divide the width."
            raise ParameterError("--heads", problem)
        table, null = shapes.get("cls_embedding.embedding_table.weight"), shapes.get("cls_embedding.uncond_embedding")
        captions = {} if null is None else {"caption_tokens": null[0], "caption_dim": null[1]}
        if table is None and null is None:
            raise KeyError("cls_embedding.embedding_table.weight")
        return GeneratorConfig(
            dim=dim,
            layers=layers,
            heads=heads,
            kv_heads=(shapes["layers.0.attention.wqkv.weight"][0] // (dim // heads) - heads) // 2,
            multiple_of=shapes["layers.0.feed_forward.w1.weight"][0],
            grid=grid,
            codebook_size=codes,
            classes=table[0] - 1 if table else 1,
            **captions,
        )
    except (KeyError, ValueError) as error:
        raise FileError(path, f"this is no generator of LlamaGen's ({error}).") from None


def read_shapes(path: str) -> Shapes:
    """Shapes of the tensors of a file. Raises FileError where it cannot be read."""
    weights: dict[str, Tensor] = read_state_dict(Path(path))
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _is_width(name: str, part: str) -> bool:
    return name.startswith(f"{part}.conv_blocks.") and ".res." in name and name.endswith(".conv1.weight")


def _widths(shapes: Shapes, part: str, base: int) -> tuple[int, ...]:
    """Channels of each level, in multiples of the base."""
    widths = {int(name.split(".")[2]): shape[0] // base for name, shape in shapes.items() if _is_width(name, part)}
    return tuple(widths[level] for level in sorted(widths))


def _is_file(checkpoint: str) -> bool:
    return Path(checkpoint).suffix in FILES


def _is_ours(checkpoint: str, kind: str) -> bool:
    """Both files: a Janus folder has a tokenizer.json too, its text tokenizer's."""
    return all((Path(checkpoint) / f"{kind}{end}").is_file() for end in (".json", ".safetensors"))
