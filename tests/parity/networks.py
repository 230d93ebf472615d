"""The fixtures of tensors: networks, losses and gradients. They need torch and transformers, and run on any device."""

from tests.parity.fixtures import Checker, Fixture
from tests.parity.generator import (
    ROTARY,
    check_caption_generator,
    check_filter,
    check_generator,
    check_guidance_schedule,
    check_rotary,
)
from tests.parity.janus import check_janus
from tests.parity.lpips import check_lpips_arithmetic
from tests.parity.policy import (
    check_advantages,
    check_optimizer,
    check_policy_step,
    check_reward,
    check_sampled_log_probabilities,
)
from tests.parity.straight_through import check_straight_through
from tests.parity.tokenizer import check_quantizer, check_tokenizer


def network_checker(fixture: Fixture) -> Checker | None:
    """The check for a fixture of tensors, by what it holds; none for others."""
    description = fixture.description
    tensors = {*fixture.tensors, *description.get("tensors", {})}
    config = description.get("config")
    kind = config.get("model_type", "c2i") if isinstance(config, dict) else None
    recognised: list[tuple[bool, Checker]] = [
        ("weights_from" in description and "out.greedy_0" in tensors, check_guidance_schedule),
        ({"in.class_ids", "in.tokens", "out.tf_logits"} <= tensors and kind == "c2i", check_generator),
        ({"in.caption_embs_right_padded", "in.tokens", "out.tf_logits"} <= tensors, check_caption_generator),
        (any(ROTARY.fullmatch(name) for name in tensors), check_rotary),
        ("combos" in description and "out.probs_0" in tensors, check_filter),
        ({"in.image_0", "out.pre_quant_0", "out.train_recon"} <= tensors, check_tokenizer),
        ({"in.z", "in.embedding", "out.zq_0"} <= tensors, check_quantizer),
        ({"in.noisy_prefix", "in.old_logps", "in.rewards"} <= tensors, check_policy_step),
        (any(name.startswith("after1.") for name in tensors), check_optimizer),
        ({"in.rewards_0", "out.advantages_0"} <= tensors, check_advantages),
        ({"in.sampled_0", "out.logp_0"} <= tensors, check_sampled_log_probabilities),
        ({"in.fake_lpips", "out.rewards_l2"} <= tensors, check_reward),
        ({"in.gumbel_noise", "out.hard_ids"} <= tensors, check_straight_through),
        ({"in.feat0_0", "in.lin0", "out.lpips"} <= tensors, check_lpips_arithmetic),
        ({"in.prompt_ids", "in.tf_image_tokens", "out.vapi_tf_logits_cfg1"} <= tensors, check_janus),
    ]
    return next((check for holds, check in recognised if holds), None)
