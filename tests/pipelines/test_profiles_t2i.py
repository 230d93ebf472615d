"""The text-to-image profiles have the paper's hyper-parameters (table 7), and what cannot go together is refused."""

from pathlib import Path

import pytest
import yaml
from pipelines.config.params import check_params, load_params

from vapi_core.errors import ParameterError

PROFILES = {name: Path(f"profiles/{name}.yaml") for name in ("llamagen-xl-t2i", "janus-pro-1b")}


def alignment(name: str):
    a = load_params(PROFILES[name]).align
    return (a.learning_rate, a.weight_decay, a.steps, a.batch_size, a.noise_ratio)


def test_llamagen_xl_t2i_has_the_papers_hyper_parameters():
    params = load_params(PROFILES["llamagen-xl-t2i"])
    assert alignment("llamagen-xl-t2i") == (1e-6, 1e-4, 200, 128, 0.5)
    assert (params.subset.image_size, params.captions.encoder, params.captions.tokens) == (256, "flan-t5-xl", 120)
    assert (params.sample.count, params.sample.top_k, params.sample.guidance_scales) == (4, 2000, (7.5, 1.0))
    assert (params.generator.dim, params.generator.layers, params.generator.heads) == (1280, 36, 20)
    rewards = params.align.ar_grpo.rewards
    assert (
        params.rivals.methods == ("ar-grpo",) and rewards.clip_score and rewards.hpsv2 and not rewards.class_likelihood
    )


def test_janus_pro_1b_has_the_papers_hyper_parameters():
    params = load_params(PROFILES["janus-pro-1b"])
    assert alignment("janus-pro-1b") == (1e-7, 1e-4, 100, 128, 0.95)
    assert (params.subset.image_size, params.captions.encoder) == (384, "janus")
    assert (params.sample.count, params.sample.top_k, params.sample.guidance_scales) == (4, 0, (5.0, 1.0))


@pytest.mark.parametrize("name", PROFILES)
def test_what_both_have_in_common(name):
    params = load_params(PROFILES[name])
    a = params.align
    assert (params.profile, params.task, params.launch.dtype) == (name, "t2i", "bfloat16")
    assert (a.betas, a.gradient_norm, a.schedule, a.warmup_steps) == ((0.9, 0.999), 1.0, "constant", 0)
    assert (a.group_size, a.regularizer, a.regularizer_weight) == (8, "ce", 0.1)
    assert (a.clip_epsilon, a.advantage_clamp, a.reward.mse, a.reward.perceptual) == (0.2, 5.0, 1.0, 1.0)
    assert params.subset.splits["train"] == a.steps * a.batch_size
    assert params.score.geneval.detector == "mask2former" and params.tokenizer.codebook_size == 16384


@pytest.mark.parametrize(
    ("section", "name", "value", "told"),
    [
        ("captions", "encoder", "flan-t5-xl", "generator.checkpoint: a Janus reads prompts"),
        ("generator", "checkpoint", "assets/t2i_XL_stage1_256.pt", "generator.checkpoint: a Janus reads prompts"),
        ("captions", "truncate", True, "captions.truncate: prompts of Janus are never cut off"),
    ],
)
def test_janus_and_llamagen_cannot_be_mixed(section, name, value, told):
    content = yaml.safe_load(PROFILES["janus-pro-1b"].read_text())
    content[section][name] = value
    with pytest.raises(ParameterError, match=told):
        check_params(content)
