"""Checks of Janus: its policy, its VQ model as our tokenizer, and what the authors' trainer makes of its logits.

The trainer departs from the official generation in four ways, which are rebuilt here and nowhere else:
1. its logits come one position late, from where the token that they should predict has been read;
2. prompts are padded on the right, and positions count through the padding;
3. a null prompt is as long as the longest of the batch: a shorter prompt's has no begin of image at its end;
4. with guidance and more than one prompt, rows c0, u0, c1, u1 get the image tokens of items 0, 1, 0, 1.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.fixtures import Check, Fixture, close, exact
from tests.parity.generator import greedy
from vapi_core.models.janus import Janus, JanusConfig, plain, rename_official, rename_vq, tokenizer_config
from vapi_core.models.policy import Prompts
from vapi_core.models.tokenizer import Tokenizer, TokenizerConfig
from vapi_core.models.weights import load_strictly
from vapi_core.sampling import SamplingConfig

OFFICIAL_PATH = ("language_model.model.", "gen_embed.", "gen_head.", "gen_aligner.")


def load_janus_fixture(fixture: Fixture) -> tuple[Janus, Tokenizer]:
    """Policy and tokenizer from official weights."""
    from transformers import JanusVQVAEConfig, LlamaConfig

    c = fixture.description["config"]
    text = LlamaConfig(
        hidden_size=c["hidden"],
        num_hidden_layers=c["layers"],
        num_attention_heads=c["heads"],
        intermediate_size=c["intermediate"],
        vocab_size=c["vocab"],
        rms_norm_eps=c["rms_norm_eps"],
        rope_theta=c["rope_theta"],
    )
    vq = JanusVQVAEConfig(
        embed_dim=c["gen_embed_dim"],
        num_embeddings=c["image_token_size"],
        projection_dim=c["hidden"],
        image_token_embed_dim=c["hidden"],
        num_hidden_layers=c["gen_aligner_depth"],
    )
    weights, path = fixture.weights(), Path(fixture.name)
    grid = int(fixture["out.greedy_tokens"].shape[1] ** 0.5)
    policy = Janus(JanusConfig(grid, c["image_token_size"], fixture.description["pad_id"], plain(text), plain(vq)))
    load_strictly(policy, rename_official({k: t for k, t in weights.items() if k.startswith(OFFICIAL_PATH)}), path)

    multipliers = tuple(c["vq"]["ch_mult"])
    tokenizer = Tokenizer(
        TokenizerConfig(
            codebook_size=c["image_token_size"],
            codebook_dim=c["gen_embed_dim"],
            base_channels=c["vq"]["ch"],
            encoder_multipliers=multipliers,
            decoder_multipliers=multipliers,
            res_blocks=c["vq"]["num_res_blocks"],
            z_channels=c["vq"]["z_channels"],
        )
    )
    prefix = "gen_vision_model."
    load_strictly(tokenizer, {k.removeprefix(prefix): t for k, t in weights.items() if k.startswith(prefix)}, path)
    return policy.eval(), tokenizer.eval()


def whole(tokens: Tensor) -> Prompts:
    """Prompts [B, L] without padding."""
    return Prompts(tokens, torch.ones_like(tokens, dtype=torch.bool))


def all_logits(policy: Janus, prompts: Tensor, mask: Tensor, image_tokens: Tensor) -> Tensor:
    """Logits [B, L + T, V] of every position, which are counted through padding (quirk 2)."""
    text = policy.language_model.embed_tokens(prompts)
    image = policy.generation_aligner(policy.generation_embeddings(image_tokens))
    x = torch.cat([text, image], 1)
    mask = F.pad(mask, (0, image_tokens.shape[1]), value=True)
    positions = torch.arange(x.shape[1])[None]
    hidden = policy.language_model(
        inputs_embeds=x, attention_mask=mask.long(), position_ids=positions
    ).last_hidden_state
    return policy.generation_head(hidden)


def trainer_logits(policy: Janus, prompts: Tensor, image_tokens: Tensor, scale: float) -> Tensor:
    """What the authors' trainer takes for teacher-forced logits [B, T, V], with all its quirks."""
    pad, length = policy.config.pad_id, prompts.shape[1]
    own = prompts != pad
    if scale == 1.0:
        return all_logits(policy, prompts, own, image_tokens)[:, length:]  # quirk 1: length - 1 would be right
    null = prompts.clone()
    null[:, 1:-1] = pad  # quirk 3
    rows = torch.stack([prompts, null], 1).flatten(0, 1)  # c0, u0, c1, u1
    mask = torch.stack([own, torch.ones_like(own)], 1).flatten(0, 1)
    logits = all_logits(policy, rows, mask, torch.cat([image_tokens, image_tokens]))[:, length:]  # quirk 4
    conditional, unconditional = logits[0::2], logits[1::2]
    return unconditional + scale * (conditional - unconditional)


@torch.inference_mode()
def check_janus(fixture: Fixture) -> Iterator[Check]:
    policy, tokenizer = load_janus_fixture(fixture)
    scale = float(fixture.description["cfg_weight"])
    expected = fixture["out.greedy_tokens"]

    condition = whole(fixture["in.prompt_ids"].expand(len(expected), -1))
    tokens, guided = greedy(policy, condition, SamplingConfig(guidance_scale=scale))
    yield exact("greedy tokens, guided", tokens, expected)
    yield close("guided logits of each step", guided, fixture["out.guided_logits_cfg5"], 2e-4)
    both = policy.append_null(condition)
    steps = policy(both, expected.repeat(2, 1)[:, :-1])  # conditional rows, then unconditional ones
    interleaved = fixture["out.step_logits_interleaved"]
    yield close("conditional logits of each step", steps[: len(expected)], interleaved[0::2], 1e-4)
    yield close("unconditional logits of each step", steps[len(expected) :], interleaved[1::2], 1e-4)
    image = tokenizer.decode(expected)
    yield close("decoded image", image, fixture["out.decoded_image"], 1e-4)
    # the official script cuts decimals off: what it stores lies at most one below, and nowhere above
    below = (image.clamp(-1, 1) + 1).mul(127.5).permute(0, 2, 3, 1) - fixture["out.decoded_uint8"]
    yield close("decoded image, uint8", (below - 0.5).abs().clamp(min=0.5), torch.full_like(below, 0.5), 127.5e-4)

    prompts, given = fixture["in.tf_prompt_tokens_right_padded"], fixture["in.tf_image_tokens"]
    places = fixture["out.all_position_logits_prompt0"]
    first = whole(prompts[:1])
    start = prompts.shape[1] - 1  # of the rows that predict tokens 0, 1, ...
    yield close("teacher-forced logits", policy(first, given[:1]), places[:, start:], 1e-4)
    yield close("logits of every position", all_logits(policy, *vars(first).values(), given[:1]), places, 1e-4)
    yield close(
        "image token embeddings",
        policy.embed_image_tokens(torch.arange(policy.config.codebook_size)),
        fixture["out.gen_img_embeds"],
        1e-4,
    )

    for name, count, weight in (("cfg1", 2, 1.0), ("cfg5", 2, scale), ("cfg5_batch1", 1, scale)):
        quirky = trainer_logits(policy, prompts[:count], given[:count], weight)
        yield close(f"the trainer's logits, {name}", quirky, fixture[f"out.vapi_tf_logits_{name}"], 2e-4)

    images = fixture["in.image"]
    yield exact("image tokens", tokenizer.encode(images), fixture["out.vq_indices"])
    yield close("reconstruction", tokenizer.decode(fixture["out.vq_indices"]), fixture["out.vq_decode"], 1e-4)


def check_janus_layout(fixture: Fixture) -> Iterator[Check]:
    """janus_pro_1b_generation_layout: names and shapes of the parts that make images, at full size."""
    from transformers import JanusVQVAEConfig, LlamaConfig

    official = {name: tuple(entry["shape"]) for name, entry in fixture.description["state_dict"].items()}
    prefix = "gen_vision_model."
    text = LlamaConfig(hidden_size=2048, num_hidden_layers=1)  # the layout says nothing of the language model
    with torch.device("meta"):
        policy = Janus(JanusConfig(24, 16384, 0, plain(text), plain(JanusVQVAEConfig())))
        tokenizer = Tokenizer(TokenizerConfig())
    own = {name: tuple(t.shape) for name, t in policy.state_dict().items() if not name.startswith("language_model.")}
    expected = rename_official({name: shape for name, shape in official.items() if not name.startswith(prefix)})
    yield exact(f"name and shape of {len(expected)} tensors of the policy", own, expected)
    own = {name: tuple(t.shape) for name, t in tokenizer.state_dict().items()}
    expected = {name.removeprefix(prefix): shape for name, shape in official.items() if name.startswith(prefix)}
    yield exact(f"name and shape of {len(expected)} tensors of the tokenizer", own, expected)


@torch.inference_mode()
def check_renames(fixture: Fixture) -> Iterator[Check]:
    """transformers_renames: names in both formats, and how many tokens transformers' own `encode` gets right."""
    from transformers import JanusVQVAE, JanusVQVAEConfig

    for entry in fixture.description["renames"]:
        if entry["official"].startswith(OFFICIAL_PATH):
            name, expected = (entry[side].replace("*", "weight") for side in ("official", "transformers"))
            yield exact(name, [*rename_official({name: None})], [expected.removeprefix("model.")])
    tiny = fixture.other("janus_tiny")
    _, tokenizer = load_janus_fixture(tiny)
    shape = tokenizer.config
    vq = JanusVQVAE(
        JanusVQVAEConfig(
            embed_dim=shape.codebook_dim,
            num_embeddings=shape.codebook_size,
            latent_channels=shape.z_channels,
            base_channels=shape.base_channels,
            channel_multiplier=shape.encoder_multipliers,
            num_res_blocks=shape.res_blocks,
            num_patches=int(tiny["out.vq_indices"].shape[1] ** 0.5),
        )
    ).eval()
    yield exact("configuration of the VQ model", tokenizer_config(vq.config), shape)
    weights, names = tokenizer.state_dict(), vq.state_dict()
    yield exact("names of the VQ model", {*rename_vq(names)}, {*weights})
    vq.load_state_dict({name: weights[next(iter(rename_vq({name: None})))] for name in names})
    yield close("transformers' decode", vq.decode(tiny["out.vq_indices"]), tiny["out.vq_decode"], 1e-4)
    agreement = (vq.encode(tiny["in.image"]).image_tokens == tiny["out.vq_indices"][0]).float().mean()
    yield close(
        "share of tokens of transformers' encode", agreement, fixture.description["encode_token_agreement"], 1e-6
    )
