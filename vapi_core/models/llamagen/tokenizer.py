"""The VQ tokenizer: images to a grid of codebook tokens and back.

LlamaGen's architecture (official `tokenizer/tokenizer_image/vq_model.py`, a VQGAN with an l2-normalised codebook), with
width, depth and channel multipliers as options: the same class is VQ-8, VQ-16 at full size, and a digit tokenizer.
Tensor names and shapes equal the official state dict.
Our own options: fewer norm groups, which narrow models need (with one channel a group a norm takes away by how much the
channels differ: an image's ink, a scene's colors), and a tokenizer of gray images. Its decoder's three channels are
averaged and clamped to what a pixel can be; without that, coloured fringes that no training image has are what a
network of photographs sees first.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vapi_core.limits import Bounds, Checked, Length, Ratio, Weight

OFFICIAL_USAGE_BUFFER = 65536  # the official quantizer carries a buffer of this length; it must be in a checkpoint
DISTANCE_ELEMENTS = 2**24  # distances between outputs and entries in memory at a time, 64 MB in float32


Width = Annotated[int, Bounds(least=1, most=2**16)]  # channels
Multipliers = Annotated[tuple[Annotated[int, Bounds(least=1, most=64)], ...], Length(least=1, most=8)]


@dataclass(frozen=True)
class TokenizerConfig(Checked):
    """Shape of a tokenizer. The defaults are VQ-16; an image side is divided by 2 per multiplier but the first."""

    codebook_size: Annotated[int, Bounds(least=1, most=2**24)] = 16384
    codebook_dim: Width = 8
    l2_norm: bool = True
    base_channels: Width = 128
    encoder_multipliers: Multipliers = (1, 1, 2, 2, 4)
    decoder_multipliers: Multipliers = (1, 1, 2, 2, 4)
    res_blocks: Annotated[int, Bounds(least=0, most=256)] = 2
    z_channels: Width = 256
    norm_groups: Width = 32  # of the group norms
    dropout: Ratio = 0.0
    commitment_weight: Weight = 0.25
    entropy_weight: Weight = 0.0
    gray: bool = False  # decoded images have one channel, thrice, in [-1, 1]

    @property
    def downsample(self) -> int:
        """Pixels of an image side per token of a grid side."""
        return 2 ** (len(self.encoder_multipliers) - 1)


OFFICIAL_TOKENIZERS = {
    "VQ-16": TokenizerConfig(),
    "VQ-8": TokenizerConfig(encoder_multipliers=(1, 2, 2, 4), decoder_multipliers=(1, 2, 2, 4)),
}


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=groups, num_channels=channels, eps=1e-6)


class _ResBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, config: TokenizerConfig):
        super().__init__()
        self.norm1 = _norm(channels_in, config.norm_groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = _norm(channels_out, config.norm_groups)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class _AttentionBlock(nn.Module):
    """Single-head self-attention over all positions of a feature map."""

    def __init__(self, channels: int, config: TokenizerConfig):
        super().__init__()
        self.norm = _norm(channels, config.norm_groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))  # [B, HW, C]
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class _Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """One resolution: residual blocks, attention at the coarsest, then a change of resolution (or none)."""

    def __init__(self, channels: list[int], config: TokenizerConfig, attention: bool):
        super().__init__()
        self.res = nn.ModuleList(_ResBlock(i, o, config) for i, o in zip(channels, channels[1:], strict=False))
        self.attn = nn.ModuleList(_AttentionBlock(c, config) for c in channels[1:] if attention)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


def _middle(channels: int, config: TokenizerConfig) -> nn.ModuleList:
    return nn.ModuleList(
        [
            _ResBlock(channels, channels, config),
            _AttentionBlock(channels, config),
            _ResBlock(channels, channels, config),
        ]
    )


class Encoder(nn.Module):
    """[B, 3, H, W] in [-1, 1] to [B, z_channels, H / downsample, W / downsample]."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        widths = [config.base_channels * m for m in config.encoder_multipliers]
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        previous = config.base_channels
        for i, width in enumerate(widths):
            coarsest = i == len(widths) - 1
            level = _Level([previous] + [width] * config.res_blocks, config, attention=coarsest)
            level.downsample = nn.Identity() if coarsest else _Downsample(width)
            self.conv_blocks.append(level)
            previous = width
        self.mid = _middle(previous, config)
        self.norm_out = _norm(previous, config.norm_groups)
        self.conv_out = nn.Conv2d(previous, config.z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        h = self.conv_in(images)
        for level in self.conv_blocks:
            h = level.downsample(level(h))  # type: ignore[operator]
        for block in self.mid:
            h = block(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """[B, z_channels, h, w] to [B, 3, h * downsample, w * downsample], about [-1, 1] but not clamped."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        widths = [config.base_channels * m for m in reversed(config.decoder_multipliers)]
        previous = widths[0]
        self.conv_in = nn.Conv2d(config.z_channels, previous, 3, padding=1)
        self.mid = _middle(previous, config)
        self.conv_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            level = _Level([previous] + [width] * (config.res_blocks + 1), config, attention=i == 0)
            level.upsample = _Upsample(width) if i < len(widths) - 1 else nn.Identity()
            self.conv_blocks.append(level)
            previous = width
        self.norm_out = _norm(previous, config.norm_groups)
        self.conv_out = nn.Conv2d(previous, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z)
        for block in self.mid:
            h = block(h)
        for level in self.conv_blocks:
            h = level.upsample(level(h))  # type: ignore[operator]
        return self.conv_out(F.silu(self.norm_out(h)))


class Quantized(NamedTuple):
    """What the quantizer makes of encoder outputs."""

    codes: Tensor  # [B, D, h, w] codebook entries; the gradient passes straight through to the encoder
    tokens: Tensor  # [B, h * w] row-major
    codebook_loss: Tensor  # scalar: moves codebook entries towards encoder outputs
    commitment_loss: Tensor  # scalar: moves encoder outputs towards codebook entries, weighted
    entropy_loss: Tensor  # scalar: per-sample entropy minus entropy of the mean, weighted


class VectorQuantizer(nn.Module):
    """Nearest codebook entry, on the unit sphere if `l2_norm`."""

    codebook_used: Tensor

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)
        nn.init.uniform_(self.embedding.weight, -1 / config.codebook_size, 1 / config.codebook_size)
        if config.l2_norm:
            self.embedding.weight.data = F.normalize(self.embedding.weight.data, dim=-1)
        self.register_buffer("codebook_used", torch.zeros(OFFICIAL_USAGE_BUFFER))

    @property
    def codebook(self) -> Tensor:
        """The entries that decoding uses, [K, D]; normalised if `l2_norm`."""
        weight = self.embedding.weight
        return F.normalize(weight, dim=-1) if self.config.l2_norm else weight

    def look_up(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codebook entries of tokens [B, h * w] as a feature map [B, D, h, w]."""
        return self.codebook[tokens].unflatten(1, grid).permute(0, 3, 1, 2)

    def rows(self, z: Tensor) -> Tensor:
        """Encoder outputs [B, D, h, w] as rows [B * h * w, D], normalised if `l2_norm`."""
        rows = z.permute(0, 2, 3, 1).flatten(0, 2)
        return F.normalize(rows, dim=-1) if self.config.l2_norm else rows

    def nearest(self, z: Tensor) -> Tensor:
        """Tokens [B, h * w] of encoder outputs [B, D, h, w]; distances of some rows at a time are in memory."""
        rows, codebook = self.rows(z), self.codebook
        at_a_time = max(1, DISTANCE_ELEMENTS // len(codebook))
        tokens = [squared_distances(part, codebook).argmin(1) for part in rows.split(at_a_time)]
        return torch.cat(tokens).unflatten(0, (z.shape[0], -1))

    def forward(self, z: Tensor) -> Quantized:
        rows = self.rows(z)  # [N, D]
        distances = squared_distances(rows, self.codebook)  # [N, K]
        tokens = distances.argmin(1)
        codes = self.codebook[tokens]
        codebook_loss = F.mse_loss(codes, rows.detach())
        commitment_loss = self.config.commitment_weight * F.mse_loss(rows, codes.detach())
        entropy_loss = (
            self.config.entropy_weight * assignment_entropy(-distances) if self.config.entropy_weight else 0.0
        )
        straight_through = rows + (codes - rows).detach()
        b, _, h, w = z.shape
        return Quantized(
            straight_through.unflatten(0, (b, h, w)).permute(0, 3, 1, 2),
            tokens.unflatten(0, (b, -1)),
            codebook_loss,
            commitment_loss,
            torch.as_tensor(entropy_loss, device=z.device),
        )


def squared_distances(rows: Tensor, codebook: Tensor) -> Tensor:
    """[N, K] between rows [N, D] and entries [K, D]."""
    squares = rows.square().sum(1, keepdim=True) + codebook.square().sum(1)
    return torch.addmm(squares, rows, codebook.T, alpha=-2)


def assignment_entropy(affinities: Tensor, temperature: float = 0.01) -> Tensor:
    """Mean entropy of soft assignments [N, K] minus the entropy of their mean: low when sure and evenly used.

    Official `compute_entropy_loss`, softmax form, with its 1e-5 terms.
    """
    affinities = affinities / temperature
    p = affinities.softmax(-1)
    per_sample = -(p * (affinities + 1e-5).log_softmax(-1)).sum(-1).mean()
    mean_p = p.mean(0)
    of_mean = -(mean_p * (mean_p + 1e-5).log()).sum()
    return per_sample - of_mean


def decode_bytes(config: TokenizerConfig, pixels: int, itemsize: int) -> int:
    """About what decoding one image of `pixels` pixels holds at once: six feature maps like the decoder's largest."""
    widths = [config.base_channels * m for m in reversed(config.decoder_multipliers)]  # coarsest first
    areas = [pixels // 4 ** max(0, len(widths) - 2 - level) for level in range(len(widths))]  # after its upsampling
    return 6 * itemsize * max(w * a for w, a in zip(widths, areas, strict=True))


def decode_training_bytes(config: TokenizerConfig, pixels: int) -> int:
    """About what decoding one image of `pixels` pixels keeps for its backward, in bytes.

    Of each residual block two norms, activations and convolutions. Under autocast a GPU's norms are float32, and half
    of the rest; a float32 pass keeps as much.
    """
    widths = [config.base_channels * m for m in reversed(config.decoder_multipliers)]  # coarsest first
    total = 0
    for level, width in enumerate(widths):
        area = pixels // 4 ** (len(widths) - 1 - level)
        upsampled = 0 if level == len(widths) - 1 else 4 * area
        total += width * (20 * area * (config.res_blocks + 1) + 4 * upsampled)
    return total


class Tokenizer(nn.Module):
    """Encoder E, quantizer Q and decoder D of the paper. Images are [B, 3, H, W] in [-1, 1]."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)

    def embed(self, images: Tensor) -> Tensor:
        """Encoder outputs before quantization, [B, D, h, w]."""
        return self.quant_conv(self.encoder(images))

    def encode(self, images: Tensor) -> Tensor:
        """Tokens [B, h * w] of images."""
        return self.quantize.nearest(self.embed(images))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Images of code vectors [B, D, h, w]; about [-1, 1], not clamped unless they are gray."""
        # looked-up codes are channels-last in memory; the decoder's group norms take twice as long on such tensors
        images = self.decoder(self.post_quant_conv(codes.contiguous()))
        return _to_gray(images) if self.config.gray else images

    def decode(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Images [B, 3, H, W] of tokens [B, h * w]; the grid is square unless given."""
        if grid is None:
            side = int(tokens.shape[1] ** 0.5)
            assert side * side == tokens.shape[1], f"{tokens.shape[1]} tokens are no square grid"
            grid = (side, side)
        return self.decode_codes(self.quantize.look_up(tokens, grid))

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruction of images and what the quantizer did, for training."""
        quantized = self.quantize(self.embed(images))
        return self.decode_codes(quantized.codes), quantized

    def reconstruct_unquantized(self, images: Tensor) -> Tensor:
        """Images decoded from encoder outputs as they are, before the codebook has been started."""
        z = self.embed(images)
        return self.decode_codes(F.normalize(z, dim=1) if self.config.l2_norm else z)


def _to_gray(images: Tensor) -> Tensor:
    """Mean of the channels, clamped to [-1, 1]; the gradient is that of the mean, so that no pixel is stuck outside."""
    mean = images.mean(1, keepdim=True)
    return (mean + (mean.clamp(-1, 1) - mean).detach()).expand_as(images)
