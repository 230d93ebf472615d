"""The autoregressive generator: LlamaGen's transformer over a grid of tokens, conditioned on a class.

RMSNorm, SwiGLU, 2-D rotary positions and a class embedding with dropout for guidance (official
`autoregressive/models/gpt.py`). Tensor names and shapes equal the official state dict. Departures: the KV cache holds
`kv_heads` heads, so grouped-query attention works with it (the official cache crashes), and attention reads only the
positions that are filled (the official one attends over the whole preallocated cache).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class GeneratorConfig:
    """Shape of a generator. `grid` is the side of the token grid; `codebook_size` its vocabulary."""

    dim: int
    layers: int
    heads: int
    grid: int
    codebook_size: int = 16384
    classes: int = 1000
    kv_heads: int | None = None
    multiple_of: int = 256
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    init_std: float = 0.02
    token_dropout: float = 0.1
    attention_dropout: float = 0.0
    residual_dropout: float = 0.1
    ffn_dropout: float = 0.1
    class_dropout: float = 0.1

    @property
    def length(self) -> int:
        """Image tokens T."""
        return self.grid * self.grid

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


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turns neighbouring pairs of x [B, S, H, head_dim] by the angles of its S positions, table [S, head_dim / 2, 2]."""
    pairs = x.float().unflatten(-1, (-1, 2))
    cos, sin = table[:, None].unbind(-1)
    even, odd = pairs.unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2).type_as(x)


class KVCache:
    """Keys and values of all layers for one batch, preallocated once and reused: [layers, 2, B, kv_heads, S, head_dim]."""

    def __init__(self, config: GeneratorConfig, batch: int, device: torch.device, dtype: torch.dtype):
        shape = (config.layers, 2, batch, config.kv_heads or config.heads, 1 + config.length, config.head_dim)
        self.store = torch.zeros(shape, device=device, dtype=dtype)

    def extend(self, layer: int, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k, v [B, kv_heads, n, head_dim] at positions start..start+n, returns all positions so far."""
        stop = start + k.shape[2]
        keys, values = self.store[layer]
        keys[:, :, start:stop], values[:, :, start:stop] = k, v
        return keys[:, :, :stop], values[:, :, :stop]


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).type_as(x) * self.weight


class Attention(nn.Module):
    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.kv_heads = config.kv_heads or config.heads
        self.wqkv = nn.Linear(config.dim, (config.heads + 2 * self.kv_heads) * config.head_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)
        self.resid_dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x: Tensor, table: Tensor, layer: int, start: int, cache: KVCache | None) -> Tensor:
        heads, kv = self.config.heads, self.kv_heads
        q, k, v = self.wqkv(x).unflatten(-1, (-1, self.config.head_dim)).split([heads, kv, kv], dim=2)
        q, k, v = (t.transpose(1, 2) for t in (rotate(q, table), rotate(k, table), v))  # [B, H, S, head_dim]
        if cache is not None:
            k, v = cache.extend(layer, start, k, v)
        h = F.scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=self.config.attention_dropout if self.training else 0.0,
            is_causal=q.shape[2] > 1,
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

    def forward(self, x: Tensor, table: Tensor, layer: int, start: int, cache: KVCache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table, layer, start, cache)
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


class Generator(nn.Module):
    """The policy. Row t of its logits predicts token t from the condition and tokens 0..t-1."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.cls_embedding = ClassEmbedding(config)
        self.tok_embeddings = nn.Embedding(config.codebook_size, config.dim)
        self.tok_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.codebook_size, bias=False)
        # no buffer: a buffer would be rounded by .to(bfloat16), and the official table stays float32
        self.rotary = rotary_table(config.grid, config.head_dim, condition_tokens=1, base=config.rope_base)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.init_std)
        nn.init.zeros_(self.output.weight)  # the first predictions are uniform

    @property
    def null_class(self) -> int:
        return self.config.classes

    @property
    def device(self) -> torch.device:
        return self.output.weight.device

    def _trunk(self, x: Tensor, start: int, cache: KVCache | None) -> Tensor:
        """Logits [B, S, V] of embedded inputs x [B, S, dim] at positions start..start+S."""
        x = self.tok_dropout(x)
        if self.rotary.device != x.device:
            self.rotary = self.rotary.to(x.device)
        table = self.rotary[start : start + x.shape[1]]
        for i, block in enumerate(self.layers):
            x = block(x, table, i, start, cache)
        return self.output(self.norm(x)).float()

    def forward(self, class_ids: Tensor, prefix: Tensor) -> Tensor:
        """Teacher-forced logits [B, T, V] from class ids [B] and the prefix tokens 0..T-2, [B, T-1]."""
        x = torch.cat([self.cls_embedding(class_ids), self.tok_embeddings(prefix)], dim=1)
        return self._trunk(x, 0, None)

    def prefill(self, class_ids: Tensor, cache: KVCache) -> Tensor:
        """Logits [B, V] of token 0; fills the cache with the condition."""
        return self._trunk(self.cls_embedding(class_ids), 0, cache)[:, -1]

    def decode_step(self, tokens: Tensor, position: int, cache: KVCache) -> Tensor:
        """Logits [B, V] of token `position` from token `position - 1`, tokens [B]; extends the cache."""
        return self._trunk(self.tok_embeddings(tokens)[:, None], position, cache)[:, -1]
