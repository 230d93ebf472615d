"""Janus-Pro as a policy: a language model that writes image tokens after a prompt (Chen et al. 2025, arXiv:2501.17811).

The parts are those of transformers' `JanusForConditionalGeneration`, of which only the path that makes images is kept:
language model, embedding and aligner of image tokens, head. Its VQ model is LlamaGen's VQ-16, so it becomes our
`Tokenizer`: transformers' own `encode` searches the nearest code without the official l2 normalisation and gives other
tokens (reference `janus/transformers_renames.json`: 19 % agree on random weights). Checkpoints are in the format of
transformers (`deepseek-community/Janus-Pro-1B`) or the official one (`deepseek-ai/Janus-Pro-1B`), a folder or a hub id
that is in the local cache.

Departures from the authors' trainer for Janus (`tests/parity/janus.py` rebuilds its four quirks): row t of the logits
predicts token t and not what comes after it; prompts are padded on the left, so that image tokens follow them without a
gap; a null prompt keeps the two ends of its own prompt; and guidance pairs each prompt with its own image tokens. All
four are as the official `generate()` has them.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vapi_core.errors import FileError, quoted
from vapi_core.files import parse_json, read_checked_json, require_sha256, sha256_file, write_checked_json
from vapi_core.models.captions import LongCaption, LongCaptionError
from vapi_core.models.policy import Policy, Prompts
from vapi_core.models.tokenizer import OFFICIAL_USAGE_BUFFER, Tokenizer, TokenizerConfig
from vapi_core.models.weights import check_expansion, check_loaded, load_strictly, read_state_dict

JANUS_PRO_1B = "deepseek-community/Janus-Pro-1B"
HASHES = "hashes.json"  # of what `PromptTokenizer.save` wrote
ANEW = "To make it anew, run `dvc repro tokenize`."
REMEDY = f"Give a folder with a Janus checkpoint, or fetch one with `hf download {JANUS_PRO_1B}`."
OFFICIAL_TYPE = "multi_modality"  # "model_type" of the official config.json
BEGIN_OF_IMAGE, PAD = "<begin_of_image>", "<｜▁pad▁｜>"
# the official chat template without a system prompt (`conversation.py`), then the tag after which image tokens follow
PROMPT = "<|User|>: {caption}\n\n<|Assistant|>:" + BEGIN_OF_IMAGE
T = TypeVar("T")

USUAL_PROMPT = 256  # tokens, more than nearly all have
PARTS = ("language_model", "generation_embeddings", "generation_aligner", "generation_head")


@dataclass(frozen=True)
class JanusConfig:
    """Shape of a Janus policy. `text` and `vq` are the sections of those names of transformers' configuration."""

    grid: int
    codebook_size: int
    pad_id: int  # what a null prompt is filled with
    text: dict[str, Any]
    vq: dict[str, Any]

    @property
    def length(self) -> int:
        """Image tokens T."""
        return self.grid * self.grid


class JanusCache:
    """Keys and values of one batch, and the mask of its prompts; `Janus.prefill` fills it."""

    past: Any = None
    prompt_mask: Tensor  # [B, L]


class Janus(Policy):
    """The policy. A condition is `Prompts`."""

    config: JanusConfig
    activation_checkpointing: bool = False

    def __init__(self, config: JanusConfig):
        from transformers import JanusVQVAEConfig, LlamaConfig, LlamaModel
        from transformers.models.janus.modeling_janus import JanusVQVAEAlignerMLP, JanusVQVAEHead

        super().__init__()
        self.config = config
        vq = JanusVQVAEConfig(**config.vq)
        self.language_model = LlamaModel(LlamaConfig(**config.text | {"attention_dropout": 0.0}))
        self.generation_embeddings = torch.nn.Embedding(vq.num_embeddings, vq.embed_dim)
        self.generation_aligner = JanusVQVAEAlignerMLP(vq)
        self.generation_head = JanusVQVAEHead(vq)
        self._frequencies = self.language_model.rotary_emb.inv_freq.clone()

    def _apply(self, fn: Any, recurse: bool = True) -> "Janus":
        super()._apply(fn, recurse)
        rotary: Any = (
            self.language_model.rotary_emb
        )  # its buffer would be rounded by .to(bfloat16), and positions with it
        rotary.inv_freq = self._frequencies.to(rotary.inv_freq.device)
        return self

    def append_null(self, condition: Prompts) -> Prompts:
        """Prompts [2B]: a null prompt keeps the first and the last token of its prompt, the others become padding that is
        read like text, as in the official `generate()`."""
        own = condition.mask.long()
        inner = (own.cumsum(1) > 1) & (own.flip(1).cumsum(1).flip(1) > 1)
        null = condition.tokens.masked_fill(inner, self.config.pad_id)
        return Prompts(torch.cat([condition.tokens, null]), torch.cat([condition.mask, condition.mask]))

    def new_cache(self, batch: int) -> JanusCache:
        return JanusCache()

    def _embed_prompts(self, condition: Prompts) -> Tensor:
        return self.language_model.embed_tokens(condition.tokens)  # [B, L, dim]

    def embed_image_tokens(self, tokens: Tensor) -> Tensor:
        """Image tokens [B, n] as the language model's inputs [B, n, dim]."""
        return self.generation_aligner(self.generation_embeddings(tokens))  # [B, n, dim]

    def _trunk(self, x: Tensor, mask: Tensor, past: Any) -> Tensor:
        """Hidden states [B, n, dim] of the last n of S positions, of which mask [B, S] says which may be read."""
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -x.shape[1] :]
        recompute = self.activation_checkpointing and past is None and torch.is_grad_enabled()
        if recompute:
            model = self.language_model  # version 5.23 gave it another name
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        self.language_model.train(recompute)  # transformers recomputes while training only; there is no dropout
        return self.language_model(
            inputs_embeds=x,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=past,
            use_cache=past is not None,
        ).last_hidden_state

    def forward(self, condition: Prompts, prefix: Tensor) -> Tensor:
        """Teacher-forced logits [B, T, V]: row t is read at the position before token t, the prompt's last for token 0."""
        x = torch.cat([self._embed_prompts(condition), self.embed_image_tokens(prefix)], dim=1)
        mask = F.pad(condition.mask, (0, prefix.shape[1]), value=True)
        hidden = self._trunk(x, mask, None)[:, condition.tokens.shape[1] - 1 :]
        return self.generation_head(hidden).float()

    def prefill(self, condition: Prompts, cache: JanusCache) -> Tensor:
        from transformers import DynamicCache

        cache.past, cache.prompt_mask = DynamicCache(), condition.mask
        hidden = self._trunk(self._embed_prompts(condition), condition.mask, cache.past)
        return self.generation_head(hidden[:, -1]).float()

    def decode_step(self, tokens: Tensor, position: int, cache: JanusCache) -> Tensor:
        mask = F.pad(cache.prompt_mask, (0, position), value=True)
        hidden = self._trunk(self.embed_image_tokens(tokens[:, None]), mask, cache.past)
        return self.generation_head(hidden[:, -1]).float()

    def cache_bytes(self) -> int:
        """Of a prompt of `USUAL_PROMPT` tokens."""
        c: Any = self.language_model.config
        heads, head_dim = c.num_key_value_heads, c.hidden_size // c.num_attention_heads
        itemsize = self.generation_head.vision_head.weight.dtype.itemsize
        return c.num_hidden_layers * 2 * heads * head_dim * (USUAL_PROMPT + self.config.length) * itemsize


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


def load_prompt_tokenizer(path: Path | str = JANUS_PRO_1B) -> PromptTokenizer:
    """The text tokenizer of a checkpoint, or of a folder that `PromptTokenizer.save` wrote.

    Raises:
        FileError: no tokenizer here, one without the tokens that a prompt for an image needs, or a file that is not what
            `PromptTokenizer.save` wrote.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import cached_file

    if (hashes := Path(path) / HASHES).is_file():
        for name, sha256 in read_checked_json(hashes, ANEW).items():
            require_sha256(hashes.with_name(name), sha256, ANEW)
    try:
        cached_file(str(path), "tokenizer.json", local_files_only=True)
        # not AutoTokenizer: the class that Janus's files name would replace their byte-level rules by Llama's
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        raise FileError(path, f"no text tokenizer can be loaded from here ({_first_line(error)}).", REMEDY) from None
    vocabulary, bos = tokenizer.get_vocab(), tokenizer.bos_token_id
    if bos is None or not {BEGIN_OF_IMAGE, PAD} <= vocabulary.keys():
        needed = f"{BEGIN_OF_IMAGE}, {PAD} and a token for the beginning of a sentence"
        raise FileError(path, f"this is not the text tokenizer of a Janus, which has {needed}.", REMEDY)
    return PromptTokenizer(tokenizer, bos, vocabulary[PAD])


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
    """Names of transformers' VQ model to the official ones of our `Tokenizer`; adds the usage buffer, which it lacks."""
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


def plain(config: Any) -> dict[str, Any]:
    """A transformers configuration as plain data."""
    return json.loads(config.to_json_string(use_diff=False))


def _official_config(folder: Path, description: dict[str, Any], weights: dict[str, Tensor], pad_id: int) -> JanusConfig:
    """The configuration of an official checkpoint; what `config.json` leaves to the official code comes from the weights."""
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
        raise FileError(path, f"no checkpoint here ({_first_line(error)}).", REMEDY) from None
    if kind not in ("janus", OFFICIAL_TYPE):
        raise FileError(path, f"this is a model of type {quoted(kind)}, not a Janus.", REMEDY)
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
        raise FileError(path, f"no Janus can be loaded from here ({_first_line(error)}).", REMEDY) from None
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


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
