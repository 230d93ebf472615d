"""The smallest models of the real architecture, with weights that make every part matter."""

import torch
from torch import nn

from vapi_core.models.generator import Generator, GeneratorConfig
from vapi_core.models.tokenizer import Tokenizer, TokenizerConfig
from vapi_core.randomness import seed_torch

NO_DROPOUT = {"token_dropout": 0.0, "residual_dropout": 0.0, "ffn_dropout": 0.0, "class_dropout": 0.0}


def tiny_generator(seed: int = 0, grid: int = 3, codebook_size: int = 24, **options: float | int | None) -> Generator:
    """A generator in eval mode whose logits are of the order of 1; a fresh one has all-zero logits."""
    shape: dict = {"dim": 32, "layers": 2, "heads": 4, "classes": 5, "multiple_of": 32, "init_std": 0.2}
    config = GeneratorConfig(grid=grid, codebook_size=codebook_size, **(shape | options))
    seed_torch(seed, "tiny-generator")
    generator = Generator(config)
    nn.init.normal_(generator.output.weight, std=0.2)
    return generator.eval()


def tiny_tokenizer(seed: int = 0, codebook_size: int = 24, levels: int = 2) -> Tokenizer:
    """A tokenizer in eval mode; an image side is divided by 2 per level but the first."""
    config = TokenizerConfig(
        codebook_size=codebook_size,
        codebook_dim=4,
        base_channels=32,
        encoder_multipliers=(1,) * levels,
        decoder_multipliers=(1,) * levels,
        res_blocks=1,
        z_channels=32,
    )
    seed_torch(seed, "tiny-tokenizer")
    tokenizer = Tokenizer(config)
    nn.init.normal_(tokenizer.quantize.embedding.weight)
    return tokenizer.eval()


def random_tokens(batch: int, length: int, codebook_size: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randint(codebook_size, (batch, length), generator=torch.Generator().manual_seed(seed))
