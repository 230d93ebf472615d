"""What the reference numbers do not cover; `tests/parity` does the rest."""

import pytest
import torch

from tests.tiny import random_tokens, tiny_tokenizer
from vapi_core.models.llamagen.tokenizer import OFFICIAL_TOKENIZERS, Tokenizer, TokenizerConfig, assignment_entropy


@pytest.mark.parametrize(("name", "pixels"), [("VQ-16", 16), ("VQ-8", 8)])
def test_the_number_in_an_official_name_is_the_pixels_of_a_token(name, pixels):
    assert OFFICIAL_TOKENIZERS[name].downsample == pixels


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_downsample_is_what_the_encoder_does_and_the_decoder_undoes(levels):
    tokenizer = tiny_tokenizer(levels=levels)
    images = torch.randn(1, 3, 16, 16)
    tokens = tokenizer.encode(images)
    assert tokens.shape[1] == (16 // tokenizer.config.downsample) ** 2
    assert tokenizer.decode(tokens).shape == images.shape


def test_an_image_need_not_be_square_and_its_tokens_are_row_by_row():
    tokenizer = tiny_tokenizer()
    images = torch.randn(2, 3, 8, 12)
    tokens = tokenizer.encode(images)
    assert tokens.shape == (2, 4 * 6)
    assert tokenizer.decode(tokens, (4, 6)).shape == images.shape
    codes = tokenizer.quantize.look_up(tokens, (4, 6))
    assert torch.equal(codes[1, :, 2, 5], tokenizer.quantize.codebook[tokens[1, 2 * 6 + 5]])


def test_tokens_that_fill_no_square_need_their_grid_named():
    tokenizer = tiny_tokenizer()
    with pytest.raises(AssertionError, match="24 tokens are no square grid"):
        tokenizer.decode(random_tokens(2, 24))


def test_a_code_that_is_encoded_again_is_the_same_token():
    quantizer = tiny_tokenizer().quantize
    tokens = random_tokens(2, 6)
    assert torch.equal(quantizer.nearest(quantizer.look_up(tokens, (2, 3))), tokens)


def test_the_gradient_of_the_codes_passes_straight_through_to_the_encoder():
    quantizer = tiny_tokenizer().quantize
    z = torch.randn(1, 4, 2, 2)
    z = (z / z.norm(dim=1, keepdim=True)).requires_grad_()  # on the unit sphere, where normalisation only projects
    downstream = torch.randn(1, 4, 2, 2)
    (quantizer(z).codes * downstream).sum().backward()
    along = (downstream * z).sum(1, keepdim=True) * z
    assert torch.allclose(z.grad, (downstream - along).detach(), atol=1e-5)
    assert quantizer.embedding.weight.grad is None or not quantizer.embedding.weight.grad.any()


def test_the_codebook_learns_from_its_own_loss_and_the_encoder_from_the_commitment():
    tokenizer = tiny_tokenizer().train()
    _, quantized = tokenizer(torch.randn(2, 3, 8, 8))
    quantized.codebook_loss.backward(retain_graph=True)
    assert tokenizer.quantize.embedding.weight.grad.any() and tokenizer.encoder.conv_in.weight.grad is None
    tokenizer.zero_grad()
    quantized.commitment_loss.backward()
    assert tokenizer.quantize.embedding.weight.grad is None and tokenizer.encoder.conv_in.weight.grad.any()


def test_the_entropy_loss_rewards_sure_and_even_assignments():
    sure_and_even = torch.eye(4).repeat(2, 1)
    sure_but_collapsed = torch.eye(4)[:1].repeat(8, 1)
    unsure = torch.zeros(8, 4)
    losses = [float(assignment_entropy(a)) for a in (sure_and_even, sure_but_collapsed, unsure)]
    assert losses[0] < losses[1] - 1 and losses[0] < losses[2] - 1


def test_a_gray_tokenizer_decodes_the_mean_of_the_channels_within_the_range_of_pixels():
    colour, gray = tiny_tokenizer(), tiny_tokenizer(gray=True)
    for tokenizer in (colour, gray):
        tokenizer.decoder.conv_out.weight.data *= 5  # so that some pixels leave the range
    tokens = random_tokens(2, 16)
    images = colour.decode(tokens)
    assert images.abs().max() > 1 and not torch.equal(images[:, 0], images[:, 1])
    expected = images.mean(1, keepdim=True).clamp(-1, 1).expand_as(images)
    assert torch.allclose(gray.decode(tokens), expected, atol=1e-6)


def test_a_gray_pixel_outside_the_range_can_be_pulled_back_in():
    tokenizer = tiny_tokenizer(gray=True)
    tokenizer.decoder.conv_out.bias.data[:] = 100.0
    image = tokenizer.decode(random_tokens(1, 16))
    assert (image == 1).all()
    image.sum().backward()
    assert tokenizer.decoder.conv_out.bias.grad.abs().min() > 0


def test_the_nearest_entries_are_found_with_few_distances_in_memory(monkeypatch):
    tokenizer = tiny_tokenizer()
    z = torch.randn(3, 4, 5, 6)
    whole = tokenizer.quantize.nearest(z)
    monkeypatch.setattr("vapi_core.models.llamagen.tokenizer.DISTANCE_ELEMENTS", 7 * 24)
    assert torch.equal(tokenizer.quantize.nearest(z), whole) and whole.shape == (3, 30)


def test_every_norm_has_the_groups_of_the_config_and_so_keeps_by_how_much_channels_differ():
    tokenizer = Tokenizer(TokenizerConfig(64, 4, base_channels=32, encoder_multipliers=(1,), norm_groups=8))
    norms = [module for module in tokenizer.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {8}
    maps, ink = torch.randn(1, 32, 4, 4), torch.linspace(0.5, 2.0, 32).view(1, 32, 1, 1)
    alone = torch.nn.GroupNorm(32, 32)
    assert torch.allclose(alone(maps), alone(maps * ink), atol=1e-4)
    assert not torch.allclose(norms[0](maps), norms[0](maps * ink), atol=0.1)
