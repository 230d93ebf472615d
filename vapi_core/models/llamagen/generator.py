"""The autoregressive generator: LlamaGen's transformer over a grid of tokens, conditioned on a class or a caption.

RMSNorm, SwiGLU, 2-D rotary positions and a class or caption embedding with dropout for guidance (official
`autoregressive/models/gpt.py`). Tensor names and shapes equal the official state dict. Departures: the KV cache holds
`kv_heads` heads, so grouped-query attention works with it (the official cache crashes); attention reads only the
positions that are filled (the official one attends over the whole preallocated cache); and the null caption has as many
rows as a caption has tokens (the official one always has 120 and fails with any other number). As in the official code
the null caption is a buffer: it keeps its random values, and the layers above learn what it means.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vapi_core.limits import Bounds, Checked, Decay, Ratio
from vapi_core.models.policy import Captions, Policy, activation_bytes, compute_dtype

Width = Annotated[int, Bounds(least=1, most=2**16)]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Checked):
    """Size of the transformer and its dropouts, whatever the tokens and conditions are."""

    dim: Width
    layers: Annotated[int, Bounds(least=1, most=1024)]
    heads: Annotated[int, Bounds(least=1, most=1024)]
    kv_heads: Annotated[int, Bounds(least=1, most=1024)] | None = None  # None: as many as heads
    multiple_of: Width = 256  # the feed-forward width is a multiple of this
    rope_base: Annotated[float, Bounds(least=1, most=1e9)] = 10000.0
    norm_eps: Annotated[float, Bounds(above=0, below=1)] = 1e-5
    init_std: Annotated[float, Bounds(above=0, most=10)] = 0.02
    token_dropout: Decay = 0.1
    attention_dropout: Decay = 0.0
    residual_dropout: Decay = 0.1
    ffn_dropout: Decay = 0.1
    class_dropout: Ratio = 0.1  # share of conditions, classes or captions, that become the null condition in training


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(TransformerConfig):
    """Shape of a generator. `grid` is the side of the token grid; `codebook_size` its vocabulary.

    With a `caption_dim` the condition is a caption of `caption_tokens` text features of that width (FLAN-T5-XL: 2048),
    else a class.
    """

    grid: int
    codebook_size: int = 16384
    classes: int = 1000
    caption_dim: int | None = None
    caption_tokens: int = 120

    @property
    def length(self) -> int:
        """Image tokens T."""
        return self.grid * self.grid

    @property
    def condition_tokens(self) -> int:
        """Condition tokens C in front of the image tokens."""
        return 1 if self.caption_dim is None else self.caption_tokens

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def ffn_dim(self) -> int:
        """Two thirds of 4 * dim, rounded up to `multiple_of`."""
        return -(-int(2 * 4 * self.dim / 3) // self.multiple_of) * self.multiple_of


# dim, layers, heads of the official models (gpt.py, GPT_B ... GPT_3B)
OFFICIAL_GENERATORS = {
    "GPT-B": (768, 12, 12),
    "GPT-L": (1024, 24, 16),
    "GPT-XL": (1280, 36, 20),
    "GPT-XXL": (1536, 48, 24),
    "GPT-XXXL": (2560, 48, 40),
    "GPT-3B": (3200, 24, 32),
}


def caption_attention_mask(mask: Tensor, start: int, stop: int) -> Tensor:
    """Which of the positions 0..stop each of start..stop reads, bool [B, 1, stop - start, stop], of caption masks [B,
    C].

    Causal, without the caption's padding; but every position, padding too, reads itself (official `dataset/t2i.py`), or
    its softmax would be empty.
    """
    positions = torch.arange(stop, device=mask.device)
    queries = positions[start:, None]
    readable = F.pad(mask, (0, stop - mask.shape[1]), value=True)[:, None]  # [B, 1, stop]
    return (((queries >= positions) & readable) | (queries == positions))[:, None]


def rotary_table(grid: int, head_dim: int, condition_tokens: int, base: float = 10000.0) -> Tensor:
    """Cosines and sines of all positions, [C + grid * grid, head_dim / 2, 2].

    The first half of the frequencies turns with the row, the second with the column. Condition positions are all zero,
    cosine too, as in the official `precompute_freqs_cis_2d`: their queries and keys vanish.
    """
    half = head_dim // 2
    frequencies = 1.0 / base ** (torch.arange(0, half, 2)[: half // 2].float() / half)
    angles = torch.outer(torch.arange(grid).float(), frequencies)  # [grid, head_dim / 4]
    angles = torch.cat([angles[:, None].expand(-1, grid, -1), angles[None].expand(grid, -1, -1)], -1)
    table = torch.stack([angles.cos(), angles.sin()], -1).flatten(0, 1)
    return torch.cat([torch.zeros(condition_tokens, half, 2), table])


def widened(x: Tensor) -> Tensor:
    """At least float32: norms, rotations and logits are not computed in bfloat16, and not cut down from float64."""
    return x if x.dtype == torch.float64 else x.float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turns neighbouring pairs of x [B, S, H, head_dim] by the angles of S positions, table [S, head_dim / 2, 2]."""
    pairs = widened(x).unflatten(-1, (-1, 2))
    cos, sin = table[:, None].unbind(-1)
    even, odd = pairs.unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2).type_as(x)


class KVCache:
    """Keys and values of all layers for one batch, preallocated once and reused: [layers, 2, B, kv_heads, S, head_dim].

    The prefill leaves the mask of its captions [B, C] here, none for classes: it says what later tokens may read.
    """

    def __init__(self, config: GeneratorConfig, batch: int, device: torch.device, dtype: torch.dtype):
        length = config.condition_tokens + config.length
        shape = (config.layers, 2, batch, config.kv_heads or config.heads, length, config.head_dim)
        self.store = torch.zeros(shape, device=device, dtype=dtype)
        self.caption_mask: Tensor | None = None

    def start(self, caption_mask: Tensor | None) -> None:
        """Begins a batch. A mask of the same shape keeps its place in memory, which CUDA graphs read from."""
        kept = self.caption_mask
        if caption_mask is not None and kept is not None and kept.shape == caption_mask.shape:
            kept.copy_(caption_mask)
        else:
            self.caption_mask = None if caption_mask is None else caption_mask.clone()

    def extend(self, layer: int, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k, v [B, kv_heads, n, head_dim] at positions start..start+n, returns all positions so far."""
        stop = start + k.shape[2]
        keys, values = self.store[layer]
        keys[:, :, start:stop], values[:, :, start:stop] = k, v
        return keys[:, :, :stop], values[:, :, :stop]


class CacheSlot:
    """A KV cache as a decode step at a tensor [1] sees it: read up to `stop`, masked behind the position."""

    def __init__(self, store: Tensor, position: Tensor, stop: int):
        self.store, self.position, self.stop = store, position, stop

    def extend(self, layer: int, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k, v [B, kv_heads, 1, head_dim] at the position, returns the first `stop` positions."""
        keys, values = self.store[layer]
        keys.index_copy_(2, self.position, k)
        values.index_copy_(2, self.position, v)
        return keys[:, :, : self.stop], values[:, :, : self.stop]


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(widened(x), x.shape[-1:], eps=self.eps).type_as(x) * self.weight


class Attention(nn.Module):
    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.kv_heads = config.kv_heads or config.heads
        self.wqkv = nn.Linear(config.dim, (config.heads + 2 * self.kv_heads) * config.head_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)
        self.resid_dropout = nn.Dropout(config.residual_dropout)

    def forward(
        self, x: Tensor, table: Tensor, layer: int, start: int, cache: KVCache | CacheSlot | None, mask: Tensor | None
    ) -> Tensor:
        heads, kv = self.config.heads, self.kv_heads
        q, k, v = self.wqkv(x).unflatten(-1, (-1, self.config.head_dim)).split([heads, kv, kv], dim=2)
        q, k, v = (t.transpose(1, 2) for t in (rotate(q, table), rotate(k, table), v))  # [B, H, S, head_dim]
        if cache is not None:
            k, v = cache.extend(layer, start, k, v)
        h = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.config.attention_dropout if self.training else 0.0,
            is_causal=mask is None and q.shape[2] > 1,
            enable_gqa=kv != heads,
        )
        return self.resid_dropout(self.wo(h.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self.ffn_dropout = nn.Dropout(config.ffn_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn_dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class Block(nn.Module):
    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self, x: Tensor, table: Tensor, layer: int, start: int, cache: KVCache | CacheSlot | None, mask: Tensor | None
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table, layer, start, cache, mask)
        return x + self.feed_forward(self.ffn_norm(x))


class ClassEmbedding(nn.Module):
    """One condition token per class; row `classes` is the null class that guidance and dropout use."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.embedding_table = nn.Embedding(config.classes + 1, config.dim)

    def forward(self, class_ids: Tensor) -> Tensor:
        """Class ids [B] to condition tokens [B, 1, dim]; while training some ids become the null class."""
        if self.training and self.config.class_dropout > 0:
            dropped = torch.rand(class_ids.shape, device=class_ids.device) < self.config.class_dropout
            class_ids = torch.where(dropped, self.config.classes, class_ids)
        return self.embedding_table(class_ids)[:, None]


class CaptionProjection(nn.Module):
    """Text features to the width of the transformer."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        assert config.caption_dim is not None
        self.fc1 = nn.Linear(config.caption_dim, config.dim, bias=False)
        self.fc2 = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class CaptionEmbedding(nn.Module):
    """One condition token per text token; `uncond_embedding` is the null caption that guidance and dropout use."""

    uncond_embedding: Tensor  # [C, D]

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        assert config.caption_dim is not None
        null = torch.randn(config.caption_tokens, config.caption_dim) / config.caption_dim**0.5
        self.register_buffer("uncond_embedding", null)
        self.cap_proj = CaptionProjection(config)

    def forward(self, captions: Captions) -> Tensor:
        """Captions to condition tokens [B, C, dim]; in training some become the null caption, under their own mask."""
        features = captions.features.to(self.uncond_embedding.dtype)
        assert features.shape[1:] == self.uncond_embedding.shape, "captions of another encoder or limit"
        if self.training and self.config.class_dropout > 0:
            dropped = torch.rand(len(features), device=features.device) < self.config.class_dropout
            features = torch.where(dropped[:, None, None], self.uncond_embedding, features)
        return self.cap_proj(features)


class Generator(Policy):
    """LlamaGen's policy. A condition is a tensor of class ids [B] or `Captions`, whichever the configuration says."""

    config: GeneratorConfig

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.cls_embedding = ClassEmbedding(config) if config.caption_dim is None else CaptionEmbedding(config)
        self.tok_embeddings = nn.Embedding(config.codebook_size, config.dim)
        self.tok_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.codebook_size, bias=False)
        # no buffer: a buffer would be rounded by .to(bfloat16), and the official table stays float32
        self.rotary = rotary_table(config.grid, config.head_dim, config.condition_tokens, config.rope_base)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.init_std)
        nn.init.zeros_(self.output.weight)  # the first predictions are uniform

    @property
    def null_class(self) -> int:
        return self.config.classes

    def append_null(self, condition: Tensor | Captions) -> Tensor | Captions:
        """Conditions [2B] for guidance: the B given ones, then as many null ones.

        A null caption keeps the mask of the caption it stands beside, as in the official `generate()`.
        """
        if isinstance(condition, Captions):
            assert isinstance(self.cls_embedding, CaptionEmbedding)
            null = self.cls_embedding.uncond_embedding
            features = condition.features.to(null.dtype)
            return Captions(
                torch.cat([features, null.expand_as(features)]), torch.cat([condition.mask, condition.mask])
            )
        return torch.cat([condition, torch.full_like(condition, self.null_class)])

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for `batch` sequences, in the type that keys and values come in."""
        return KVCache(self.config, batch, self.device, compute_dtype(self.output.weight))

    def _trunk(
        self, x: Tensor, start: int, cache: KVCache | None, caption_mask: Tensor | None, first: int = 0
    ) -> Tensor:
        """Logits [B, S - first, V] of embedded x [B, S, dim] at positions start..start+S, without the first ones."""
        x = self.tok_dropout(x)
        if self.rotary.device != x.device:
            self.rotary = self.rotary.to(x.device)
        stop = start + x.shape[1]
        table = self.rotary[start:stop]
        mask = None if caption_mask is None else caption_attention_mask(caption_mask, start, stop)
        recompute = self.activation_checkpointing and cache is None and torch.is_grad_enabled()
        for i, block in enumerate(self.layers):
            inputs = (x, table, i, start, cache, mask)
            x = checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)
        return widened(self.output(self.norm(x[:, first:])))

    def forward(self, condition: Tensor | Captions, prefix: Tensor) -> Tensor:
        """Teacher-forced logits [B, T, V] from B conditions and the prefix tokens 0..T-2, [B, T-1]."""
        x = torch.cat([self.cls_embedding(condition), self.tok_embeddings(prefix)], dim=1)
        return self._trunk(x, 0, None, _mask(condition), self.config.condition_tokens - 1)

    def prefill(self, condition: Tensor | Captions, cache: KVCache) -> Tensor:
        """Logits [B, V] of token 0; fills the cache with the condition."""
        cache.start(_mask(condition))
        first = self.config.condition_tokens - 1
        return self._trunk(self.cls_embedding(condition), 0, cache, cache.caption_mask, first)[:, -1]

    def decode_step(self, tokens: Tensor, position: int, cache: KVCache) -> Tensor:
        """Logits [B, V] of token `position` from token `position - 1`, tokens [B]; extends the cache."""
        start = self.config.condition_tokens - 1 + position
        return self._trunk(self.tok_embeddings(tokens)[:, None], start, cache, cache.caption_mask)[:, -1]

    def decode_step_at(self, tokens: Tensor, position: Tensor, stop: int, cache: KVCache) -> Tensor:
        """`decode_step` in fixed shapes, over `stop` image tokens; from the current one on they are masked."""
        place = position + (self.config.condition_tokens - 1)  # [1]
        stop = self.config.condition_tokens + stop
        columns = torch.arange(stop, device=place.device)
        mask = (columns <= place)[None, None, None]  # [1, 1, 1, stop]
        if cache.caption_mask is not None:
            readable = F.pad(cache.caption_mask, (0, stop - cache.caption_mask.shape[1]), value=True)
            mask = mask & readable[:, None, None]
        if self.rotary.device != place.device:
            self.rotary = self.rotary.to(place.device)
        table, slot = self.rotary.index_select(0, place), CacheSlot(cache.store, place, stop)
        x = self.tok_embeddings(tokens)[:, None]
        for i, block in enumerate(self.layers):
            x = block(x, table, i, 0, slot, mask)
        return widened(self.output(self.norm(x)))[:, -1]

    def cache_bytes(self) -> int:
        """Bytes of the KV cache of one sequence."""
        c = self.config
        length = c.condition_tokens + c.length
        return c.layers * 2 * (c.kv_heads or c.heads) * length * c.head_dim * compute_dtype(self.output.weight).itemsize

    def activation_bytes(self) -> int:
        c, itemsize = self.config, compute_dtype(self.output.weight).itemsize
        positions = c.condition_tokens + c.length - 1
        return activation_bytes(c.layers, positions, c.dim, c.ffn_dim, itemsize, self.activation_checkpointing)


def _mask(condition: Tensor | Captions) -> Tensor | None:
    return condition.mask if isinstance(condition, Captions) else None
