"""Check of STE: tokens, images, losses and gradients of one step of the authors' straight-through script."""

from collections.abc import Iterator

from tests.parity.fixtures import Check, Fixture, close, close_relative, exact
from tests.parity.generator import load_generator
from tests.parity.tokenizer import load_tokenizer
from vapi_core.alignment.reconstruction import reconstruction_loss
from vapi_core.alignment.reward import RewardWeights
from vapi_core.alignment.straight_through import decode_straight_through, straight_through
from vapi_core.models.logits import next_token_loss


def check_straight_through(fixture: Fixture) -> Iterator[Check]:
    """vapi/ste_step, with the raw codebook that the script multiplies by."""
    description = fixture.description
    assert description["rec_type"] == "l2" and description["perc_weight"] == 0
    generator, tokenizer = load_generator(fixture), load_tokenizer(fixture.other(description["vq_fixture"]))
    tokenizer.requires_grad_(False)
    images = fixture["in.image"].float()
    tokens = tokenizer.encode(images)
    yield exact("reference tokens", tokens, fixture["out.gt_tokens"])
    logits = generator(fixture["in.class_ids"], tokens[:, :-1])
    yield close("logits", logits.detach(), fixture["out.logits"], 5e-5)
    one_hot, drawn = straight_through(
        logits, fixture["in.gumbel_noise"], description["temperature"], description["ste_tau"]
    )
    yield exact("drawn tokens", drawn, fixture["out.hard_ids"])
    codebook = tokenizer.quantize.embedding.weight
    yield close("code vectors", (one_hot @ codebook).detach(), fixture["out.zq_flat"], 1e-4)
    decoded = decode_straight_through(tokenizer, one_hot, codebook, images.shape)
    yield close("images", decoded.detach(), fixture["out.pred_images"], 1e-4)
    reconstruction, _ = reconstruction_loss(decoded, images, RewardWeights(mse=description["rec_weight"], perceptual=0))
    ce = next_token_loss(logits, tokens)
    loss = reconstruction + description["aux_ce_weight"] * ce
    yield close("reconstruction loss", reconstruction.detach(), fixture["out.rec_loss"], 1e-5)
    yield close("cross-entropy", ce.detach(), fixture["out.ce"], 1e-5)
    yield close("loss", loss.detach(), fixture["out.loss"], 1e-5)
    loss.backward()
    parameters = dict(generator.named_parameters())
    for name in list(fixture.tensors):
        if name.startswith("grad."):
            gradient = parameters[name.removeprefix("grad.")].grad
            yield close_relative(f"gradient of {name.removeprefix('grad.')}", gradient, fixture[name], 1e-4)
