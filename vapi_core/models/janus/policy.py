"""Janus-Pro as a policy: a language model that writes image tokens after a prompt (Chen et al. 2025, arXiv:2501.17811).

The parts are those of transformers' `JanusForConditionalGeneration`, of which only the path that makes images is kept:
language model, embedding and aligner of image tokens, head.

Departures from the authors' trainer for Janus (`tests/parity/janus.py` rebuilds its four quirks): row t of the logits
predicts token t and not what comes after it; prompts are padded on the left, so that image tokens follow them without a
gap; a null prompt keeps the two ends of its own prompt; and guidance pairs each prompt with its own image tokens. All
four are as the official `generate()` has them.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vapi_core.models.policy import Policy, Prompts, activation_bytes, compute_dtype

USUAL_PROMPT = 256  # tokens, more than nearly all have


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
        """Prompts [2B]: a null prompt keeps the first and the last token of its prompt, the others become padding that
        is read like text, as in the official `generate()`."""
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
        """Teacher-forced logits [B, T, V]: row t is read at the position before token t, first the prompt's last."""
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
        itemsize = compute_dtype(self.generation_head.vision_head.weight).itemsize
        return c.num_hidden_layers * 2 * heads * head_dim * (USUAL_PROMPT + self.config.length) * itemsize

    def activation_bytes(self) -> int:
        """Of such a prompt."""
        c: Any = self.language_model.config
        positions, itemsize = (
            USUAL_PROMPT + self.config.length,
            compute_dtype(self.generation_head.vision_head.weight).itemsize,
        )
        layers, recompute = c.num_hidden_layers, self.activation_checkpointing
        return activation_bytes(layers, positions, c.hidden_size, c.intermediate_size, itemsize, recompute)
