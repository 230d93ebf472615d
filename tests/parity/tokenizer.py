"""Checks of the tokenizer and of its quantizer alone."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.parity.fixtures import Check, Fixture, close, close_relative, exact
from vapi_core.models.llamagen.tokenizer import Tokenizer, TokenizerConfig, VectorQuantizer


def tokenizer_config(config: dict[str, Any]) -> TokenizerConfig:
    """Our configuration of an official one, or of a fixture with its extra options."""
    return TokenizerConfig(
        codebook_size=config["codebook_size"],
        codebook_dim=config["codebook_embed_dim"],
        l2_norm=config["codebook_l2_norm"],
        base_channels=config.get("ch", 128),
        encoder_multipliers=tuple(config.get("encoder_ch_mult") or config["ch_mult"]),
        decoder_multipliers=tuple(config.get("decoder_ch_mult") or config["ch_mult"]),
        res_blocks=config.get("num_res_blocks", 2),
        z_channels=config["z_channels"],
        dropout=config.get("dropout_p", 0.0),
        commitment_weight=config["commit_loss_beta"],
        entropy_weight=config["entropy_loss_ratio"],
    )


def load_tokenizer(fixture: Fixture) -> Tokenizer:
    tokenizer = Tokenizer(tokenizer_config(fixture.description["config"]))
    tokenizer.load_state_dict(fixture.weights())
    return tokenizer.eval()


def check_tokenizer(fixture: Fixture) -> Iterator[Check]:
    """vq_tokenizer/vq*: every station from image to tokens and back, then losses and gradients of a training step."""
    tokenizer = load_tokenizer(fixture)
    if "downsample" in fixture.description:
        yield exact("downsample", tokenizer.config.downsample, fixture.description["downsample"])
    indices = [name.removeprefix("in.image_") for name in fixture.tensors if name.startswith("in.image_")]
    for i in indices:
        images = fixture[f"in.image_{i}"].float()
        with torch.no_grad():
            tokens, before = tokenizer.encode(images), tokenizer.embed(images)
            grid = (before.shape[2], before.shape[3])
            yield close(f"encoder {i}", tokenizer.encoder(images), fixture[f"out.encoder_{i}"], 1e-4)
            yield close(f"before quantization {i}", before, fixture[f"out.pre_quant_{i}"], 1e-4)
            yield exact(f"tokens {i}", tokens, fixture[f"out.indices_{i}"])
            yield close(f"codes {i}", tokenizer.quantize(before).codes, fixture[f"out.quant_{i}"], 1e-4)
            yield close(f"code look-up {i}", tokenizer.quantize.look_up(tokens, grid), fixture[f"out.quant_{i}"], 1e-4)
            yield close(f"decoded {i}", tokenizer.decode(tokens, grid), fixture[f"out.decode_code_{i}"], 1e-4)

    images = fixture["in.image_0"].float()
    reconstruction, quantized = tokenizer.train()(images)
    mse = (reconstruction - images).square().mean()
    yield close("training reconstruction", reconstruction.detach(), fixture["out.train_recon"], 1e-4)
    yield close("training MSE", mse.detach(), fixture["out.train_mse"], 1e-5)
    yield close("codebook loss", quantized.codebook_loss.detach(), fixture["out.train_vq_loss"], 1e-5)
    yield close("commitment loss", quantized.commitment_loss.detach(), fixture["out.train_commit_loss"], 1e-5)
    yield close("entropy loss", quantized.entropy_loss.detach(), fixture["out.train_entropy_loss"], 1e-5)
    (mse + quantized.codebook_loss + quantized.commitment_loss + quantized.entropy_loss).backward()
    parameters = dict(tokenizer.named_parameters())
    for name in list(fixture.tensors):
        if name.startswith("grad."):
            gradient = parameters[name.removeprefix("grad.")].grad
            yield close_relative(f"gradient of {name.removeprefix('grad.')}", gradient, fixture[name], 1e-4)


def check_quantizer(fixture: Fixture) -> Iterator[Check]:
    """vq_tokenizer/quantizer_only: codes, losses and gradients of the quantizer alone."""
    embedding = fixture["in.embedding"]
    for case in fixture.description["cases"]:
        i = case["index"]
        config = TokenizerConfig(
            codebook_size=embedding.shape[0],
            codebook_dim=embedding.shape[1],
            l2_norm=case["l2_norm"],
            commitment_weight=case["commit_loss_beta"],
            entropy_weight=case["entropy_loss_ratio"],
        )
        quantizer = VectorQuantizer(config)
        quantizer.embedding.weight.data = embedding.clone()
        z = fixture["in.z"].clone().requires_grad_()
        codes, tokens, codebook_loss, commitment_loss, entropy_loss = quantizer(z)
        ramp = torch.linspace(-1, 1, codes.numel()).view_as(codes)
        ((codes * ramp).sum() + codebook_loss + commitment_loss + entropy_loss).backward()

        def same(quantity: str, actual: Tensor | None, expected: str, i: int = i) -> Check:
            assert actual is not None
            return close(f"case {i} {quantity}", actual.detach(), fixture[f"out.{expected}_{i}"], 1e-5)

        yield exact(f"case {i} tokens", tokens.flatten(), fixture[f"out.idx_{i}"])
        yield exact(f"case {i} tokens of nearest()", quantizer.nearest(z).flatten(), fixture[f"out.idx_{i}"])
        yield same("codes", codes, "zq")
        yield same("codebook loss", codebook_loss, "vq_loss")
        yield same("commitment loss", commitment_loss, "commit_loss")
        yield same("entropy loss", entropy_loss, "entropy_loss")
        yield same("gradient of z", z.grad, "grad_z")
        yield same("gradient of the codebook", quantizer.embedding.weight.grad, "grad_embedding")
        yield same("look-up as a map", quantizer.look_up(tokens, (z.shape[2], z.shape[3])), "entry_chw")
        yield same("look-up as rows", quantizer.codebook[tokens.flatten()], "entry_flat")
