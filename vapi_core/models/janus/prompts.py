"""Prompts of Janus: captions in its chat template, as text tokens that its language model reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vapi_core.errors import FileError
from vapi_core.files import read_checked_json, require_sha256, sha256_file, write_checked_json
from vapi_core.models.captions.encoders import LongCaption, LongCaptionError
from vapi_core.models.policy import Prompts

JANUS_PRO_1B = "deepseek-community/Janus-Pro-1B"
REMEDY = f"Give a folder with a Janus checkpoint, or fetch one with `hf download {JANUS_PRO_1B}`."
HASHES = "hashes.json"  # of what `PromptTokenizer.save` wrote
BEGIN_OF_IMAGE, PAD = "<begin_of_image>", "<｜▁pad▁｜>"
# the official chat template without a system prompt (`conversation.py`), then the tag after which image tokens follow
PROMPT = "<|User|>: {caption}\n\n<|Assistant|>:" + BEGIN_OF_IMAGE


@dataclass(frozen=True)
class PromptTokenizer:
    """Captions to prompts: begin of sentence, the chat template around the caption, begin of image."""

    tokenizer: Any  # a transformers tokenizer
    bos_id: int
    pad_id: int

    def token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Text tokens of each caption's prompt."""
        texts = [PROMPT.format(caption=caption.strip()) for caption in captions]
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [[self.bos_id, *ids] for ids in encoded]

    def encode(self, captions: Sequence[str]) -> Prompts:
        """Prompts [B, L] of captions."""
        return pad_prompts(self.token_ids(captions), self.pad_id)

    def check_length(self, captions: Sequence[str], limit: int) -> list[int]:
        """Tokens of each caption's prompt.

        Raises:
            LongCaptionError: some are longer than `limit`; names them.
        """
        lengths = [len(ids) for ids in self.token_ids(captions)]
        if long := [LongCaption(c, n) for c, n in zip(captions, lengths, strict=True) if n > limit]:
            raise LongCaptionError(long, len(captions), limit)
        return lengths

    def save(self, directory: Path | str) -> None:
        """Writes the tokenizer's files and their sha256."""
        written = [Path(file) for file in self.tokenizer.save_pretrained(directory)]
        write_checked_json(Path(directory) / HASHES, {f.name: sha256_file(f) for f in written if f.is_file()})


def pad_prompts(ids: Sequence[Sequence[int]], pad_id: int) -> Prompts:
    """Prompts [B, L] of token ids, padded on the left to the longest."""
    longest = max(map(len, ids))
    tokens = torch.tensor([[pad_id] * (longest - len(row)) + list(row) for row in ids])
    mask = torch.arange(longest) >= longest - torch.tensor([len(row) for row in ids])[:, None]
    return Prompts(tokens, mask)


@dataclass(frozen=True)
class PromptConditions:
    """The prompts of N images, for `AlignmentData`."""

    ids: list[list[int]]
    pad_id: int

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, items: np.ndarray, device: torch.device) -> Prompts:
        prompts = pad_prompts([self.ids[item] for item in items], self.pad_id)
        return Prompts(prompts.tokens.to(device), prompts.mask.to(device))


def load_prompt_tokenizer(path: Path | str = JANUS_PRO_1B, remedy: str = REMEDY) -> PromptTokenizer:
    """The text tokenizer of a checkpoint, or of a folder that `PromptTokenizer.save` wrote.

    Raises:
        FileError: no tokenizer here, one without the tokens that a prompt for an image needs, or a file that is not
            what `PromptTokenizer.save` wrote.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import cached_file

    if (hashes := Path(path) / HASHES).is_file():
        for name, sha256 in read_checked_json(hashes, remedy).items():
            require_sha256(hashes.with_name(name), sha256, remedy)
    try:
        cached_file(str(path), "tokenizer.json", local_files_only=True)
        # not AutoTokenizer: the class that Janus's files name would replace their byte-level rules by Llama's
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        raise FileError(path, f"no text tokenizer can be loaded from here ({first_line(error)}).", remedy) from None
    vocabulary, bos = tokenizer.get_vocab(), tokenizer.bos_token_id
    if bos is None or not {BEGIN_OF_IMAGE, PAD} <= vocabulary.keys():
        needed = f"{BEGIN_OF_IMAGE}, {PAD} and a token for the beginning of a sentence"
        raise FileError(path, f"this is not the text tokenizer of a Janus, which has {needed}.", remedy)
    return PromptTokenizer(tokenizer, bos, vocabulary[PAD])


def first_line(error: Exception) -> str:
    """What an error says first; transformers and tokenizers go on for pages."""
    return str(error).strip().partition("\n")[0]
