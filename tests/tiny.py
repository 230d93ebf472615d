"""The smallest models of the real architecture, with weights that make every part matter."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vapi_core.models.llamagen.generator import Generator, GeneratorConfig
from vapi_core.models.llamagen.tokenizer import Tokenizer, TokenizerConfig
from vapi_core.models.policy import Captions
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


def tiny_tokenizer(seed: int = 0, codebook_size: int = 24, levels: int = 2, gray: bool = False) -> Tokenizer:
    """A tokenizer in eval mode; an image side is divided by 2 per level but the first."""
    config = TokenizerConfig(
        codebook_size=codebook_size,
        codebook_dim=4,
        base_channels=32,
        encoder_multipliers=(1,) * levels,
        decoder_multipliers=(1,) * levels,
        res_blocks=1,
        z_channels=32,
        gray=gray,
    )
    seed_torch(seed, "tiny-tokenizer")
    tokenizer = Tokenizer(config)
    nn.init.normal_(tokenizer.quantize.embedding.weight)
    return tokenizer.eval()


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models have the same tensors under the same names in the same order."""
    x, y = a.state_dict(), b.state_dict()
    return list(x) == list(y) and all(torch.equal(x[name], y[name]) for name in x)


def random_tokens(batch: int, length: int, codebook_size: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randint(codebook_size, (batch, length), generator=torch.Generator().manual_seed(seed))


TINY_T5 = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}


def write_tiny_t5(directory: Path) -> Path:
    """A whole T5 checkpoint, 16 wide, as `save_pretrained` writes FLAN-T5-XL: encoder, decoder, tokenizer."""
    from transformers import T5ForConditionalGeneration

    return write_t5(directory, T5ForConditionalGeneration, TINY_T5)


def write_t5(directory: Path, model_class: Any, shape: dict[str, int]) -> Path:
    """A random T5 with a tokenizer of some words and all letters; without `vocab_size` as many embeddings as these."""
    from transformers import T5Config, T5Tokenizer

    words = "a an the photo of two three green red blue cat dog cats dogs left right"
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(f"▁{word}", -3.0) for word in words.split()]
    vocabulary += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    seed_torch(0, "tiny-t5")
    shape = {"vocab_size": len(vocabulary)} | shape
    model = model_class(T5Config(**shape, feed_forward_proj="gated-gelu", tie_word_embeddings=False))
    model.save_pretrained(directory)
    T5Tokenizer(vocab=vocabulary, extra_ids=0).save_pretrained(directory)
    return directory


JANUS_CAPTIONS = ["a photo of two red cats", "a dog", "a photo of a blue dog left of a cat"]


TINY_JANUS: dict[str, dict[str, Any]] = {
    "text": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.2,
    },
    "vision": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "projection_dim": 32,
        "num_image_tokens": 16,
    },
    "vq": {
        "embed_dim": 4,
        "num_embeddings": 24,
        "latent_channels": 32,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1],
        "num_res_blocks": 1,
        "projection_dim": 32,
        "image_token_embed_dim": 32,
        "initializer_range": 0.2,
    },
}


def write_tiny_janus(directory: Path, seed: int = 0) -> Path:
    """A whole Janus checkpoint, 32 wide, as `save_pretrained` writes Janus-Pro-1B: understanding, generation,
    tokenizer.

    Images of 16 pixels are 4 x 4 tokens out of 24.
    """
    return write_janus(directory, TINY_JANUS, seed)


def write_janus(directory: Path, shape: dict[str, dict[str, Any]], seed: int = 0) -> Path:
    """A random Janus with a tokenizer of few words; without a `vocab_size` of text as many embeddings as these.

    Args:
        shape: fields of the configurations of its parts, `text`, `vision` and `vq`.
    """
    from tokenizers import Tokenizer as Bpe
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import (
        JanusConfig,
        JanusForConditionalGeneration,
        JanusVisionConfig,
        JanusVQVAEConfig,
        LlamaConfig,
        PreTrainedTokenizerFast,
    )

    tags = [
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜▁pad▁｜>",
        "<image_placeholder>",
        "<begin_of_image>",
    ]
    tags += ["<end_of_image>", "<|User|>", "<|Assistant|>"]
    bpe = Bpe(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, special_tokens=tags, show_progress=False)
    bpe.train_from_iterator(["a photo of two red cats left of a blue dog"], trainer)
    named = dict(zip(("image_token", "boi_token", "eoi_token"), tags[3:6], strict=True))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=tags[0], eos_token=tags[1], pad_token=tags[2], extra_special_tokens=named
    )
    text = LlamaConfig(**{"vocab_size": len(tokenizer)} | shape["text"], tie_word_embeddings=False)
    vision, vq = JanusVisionConfig(**shape["vision"]), JanusVQVAEConfig(**shape["vq"])
    config = JanusConfig(
        text_config=text, vision_config=vision, vq_config=vq, image_token_id=3, tie_word_embeddings=False
    )
    seed_torch(seed, "tiny-janus")
    model = JanusForConditionalGeneration(config)
    nn.init.normal_(model.model.vqmodel.quantize.embedding.weight)
    nn.init.normal_(model.model.generation_embeddings.weight)
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id, generation.pad_token_id = 0, 1, 2
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
