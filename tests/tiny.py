"""The smallest models of the real architecture, with weights that make every part matter."""

from pathlib import Path

import torch
from torch import nn

from vapi_core.models.generator import Captions, Generator, GeneratorConfig
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


CAPTIONED = {"caption_dim": 6, "caption_tokens": 5}


def tiny_captions(lengths: tuple[int, ...] = (5, 2, 1, 3), seed: int = 0) -> Captions:
    """Left-padded captions of these lengths for `tiny_generator(**CAPTIONED)`; the padding holds numbers too."""
    features = torch.randn(len(lengths), 5, 6, generator=torch.Generator().manual_seed(seed))
    return Captions(features, torch.arange(5) >= 5 - torch.tensor(lengths)[:, None])


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


def write_tiny_t5(directory: Path) -> Path:
    """A whole T5 checkpoint, 16 wide, as `save_pretrained` writes FLAN-T5-XL: encoder, decoder, tokenizer."""
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    words = "a an the photo of two three green red blue cat dog cats dogs left right"
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(f"▁{word}", -3.0) for word in words.split()]
    vocabulary += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    seed_torch(0, "tiny-t5")
    shape = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4, "vocab_size": len(vocabulary)}
    model = T5ForConditionalGeneration(T5Config(**shape, feed_forward_proj="gated-gelu", tie_word_embeddings=False))
    model.save_pretrained(directory)
    T5Tokenizer(vocab=vocabulary, extra_ids=0).save_pretrained(directory)
    return directory
