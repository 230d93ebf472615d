"""What variants need of the other parameters and of each other is asked before any work."""

import pytest

from pipelines.config.loading import check_params
from pipelines.config.profiles import read_profile
from tests.pipelines.config.test_params import put
from vapi_core.errors import ParameterError


@pytest.fixture
def content():
    return read_profile("mnist")


NO_TERM = {"mse": 0.0, "perceptual": 0.0, "l1": 0.0, "embedding": 0.0}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("align.micro_batch_size", 5, r"^align\.micro_batch_size: .*does not divide into micro-batches of 5"),
        ("launch.processes", 3, r"^launch\.processes: .*does not divide into 3 equal parts"),
        ("classifiers.reward", None, r"^classifiers\.reward: needed by the variant va-pi"),
        (
            "score.extractors",
            ["reward-classifier"],
            r"^score\.extractors: 'reward-classifier' rewards the variant va-pi",
        ),
        ("tables", ["rivals", "beauty"], r"^tables: no variant and no control is a row of 'beauty'"),
        ("tables", ["rivals", "rivals"], r"^tables: an entry stands twice"),
        (
            "sample.temperature",
            0.9,
            r"^controls\.base\.temperatures: its first temperature must be sample\.temperature",
        ),
        (
            "controls.base.temperatures",
            [1.0, 0.8, 0.8],
            r"^controls\.base\.temperatures: temperature 0\.8 with guidance 1\.0 is drawn by",
        ),
        (
            "controls.temperatures.temperatures",
            [0.8],
            r"^controls\.temperatures\.temperatures: .*drawn by 'base' already",
        ),
        (
            "sample.guidance_scales",
            [1.0, 1.5],
            r"^controls\.guided\.temperatures: temperature 1\.0 with guidance 1\.5 is drawn",
        ),
        ("variants.va-pi.guidance_scales", [1.5, 1.5], r"^variants\.va-pi\.guidance_scales: an entry stands twice"),
    ],
)
def test_what_a_variant_cannot_work_with_is_refused_by_name(content, key, value, message):
    put(content, key, value)
    with pytest.raises(ParameterError, match=message):
        check_params(content)


def test_the_base_itself_is_needed(content):
    content["controls"]["others"] = content["controls"].pop("base")
    with pytest.raises(ParameterError, match=r"controls\.base: the base itself is needed"):
        check_params(content)


def test_a_variant_and_a_control_cannot_share_a_name(content):
    content["controls"]["va-pi"] = {"table": "rivals", "temperatures": [0.5]}
    with pytest.raises(ParameterError, match=r"controls\.va-pi: a variant has this name too"):
        check_params(content)


@pytest.mark.parametrize(
    ("name", "align", "told"),
    [
        ("va-pi", {"reward": NO_TERM, "regularizer": "none"}, r"variants\.va-pi\.align\.reward: without any term"),
        ("va-pi", {"reward": NO_TERM, "regularizer_weight": 0.0}, r"variants\.va-pi\.align\.reward: without any term"),
        ("ste", {"reward": NO_TERM}, r"variants\.ste\.align\.reward: at least one term needs a weight above 0"),
        (
            "ste",
            {"reward": {"embedding": 1.0}},
            r"variants\.ste\.align\.reward\.embedding: this method compares pixels",
        ),
        (
            "tokenizer-post-training",
            {"reward": {"embedding": 1.0}},
            r"variants\.tokenizer-post-training\.align\.reward\.embedding: this method compares pixels",
        ),
        (
            "ar-grpo",
            {"rewards": {"class_likelihood": 0.0, "clip_score": 0.0, "hpsv2": 0.0}},
            r"variants\.ar-grpo\.align\.rewards: .*above 0",
        ),
        ("noise-0_0", {"micro_batch_size": 5}, r"variants\.noise-0_0\.align\.micro_batch_size: .*micro-batches of 5"),
    ],
)
def test_settings_with_which_a_method_cannot_train_are_named_where_they_stand(content, name, align, told):
    content["variants"][name]["align"] |= align
    with pytest.raises(ParameterError, match=told):
        check_params(content)


def test_a_term_that_all_share_and_a_rival_does_not_have_is_named_there(content):
    content["align"]["reward"]["embedding"] = 1.0
    with pytest.raises(
        ParameterError, match=r"^align\.reward\.embedding: .*\(variant ste\).*\(variant tokenizer-post-training\)"
    ):
        check_params(content)
    for rival in ("ste", "tokenizer-post-training"):
        del content["variants"][rival]
    check_params(content)  # va-pi has it


def test_micro_batches_divide_what_one_process_has_of_a_step(content):
    content["launch"]["processes"], content["align"]["batch_size"] = 4, 32
    for size in (2, 8, 16):  # of a share of 8; what is larger is all of it
        content["align"]["micro_batch_size"] = size
        check_params(content)
    content["align"]["micro_batch_size"] = 3
    with pytest.raises(ParameterError, match=r"align\.micro_batch_size: a process's share of 8"):
        check_params(content)


def test_weights_that_are_spread_over_processes_draw_no_pictures(content):
    content["launch"] |= {"strategy": "fsdp", "processes": 2}
    with pytest.raises(ParameterError, match=r"align\.images_every: .*whole weights are needed: 0, or launch\.strat"):
        check_params(content)
    content["launch"]["processes"] = 1
    check_params(content)  # nothing is spread
    content["launch"]["processes"], content["align"]["images_every"] = 2, 0
    check_params(content)


def test_the_network_that_rewards_a_rival_must_not_score_either(content):
    content["align"]["reward_network"] = "lpips"
    content["score"]["extractors"] = ["reward-classifier"]
    with pytest.raises(ParameterError, match="rewards the variant ar-grpo"):
        check_params(content)
    del content["variants"]["ar-grpo"]
    check_params(content)  # nobody is rewarded by it


def test_a_variant_whose_reward_has_no_perceptual_term_needs_no_classifier(content):
    content["variants"] = {name: content["variants"][name] for name in ("only-mse", "only-prior", "cross-entropy")}
    content["classifiers"]["reward"], content["tables"] = None, ["reward"]
    check_params(content)


def test_a_prompt_without_a_place_for_the_class_is_refused_where_prompts_are_used(content):
    own = content["variants"]["ar-grpo"]["align"]
    own["prompt"] = "a photo"
    check_params(content)
    own["rewards"]["clip_score"] = 1.0
    with pytest.raises(ParameterError, match=r"variants\.ar-grpo\.align\.prompt: "):
        check_params(content)


def test_captions_have_no_classes_to_learn_from():
    content = read_profile("scenes")
    rewards = {"class_likelihood": 1.0, "clip_score": 0.0, "hpsv2": 0.0}
    content["variants"]["ar-grpo"] = {"table": "rivals", "method": "ar-grpo", "align": {"rewards": rewards}}
    with pytest.raises(ParameterError, match=r"variants\.ar-grpo\.method: ar-grpo learns from classes"):
        check_params(content)


def test_what_is_wrong_with_several_variants_stands_in_one_message(content):
    content["classifiers"]["reward"] = None
    content["variants"]["ste"]["align"]["reward"] = {"embedding": 1.0}
    with pytest.raises(ParameterError) as caught:
        check_params(content)
    told = str(caught.value)
    assert "classifiers.reward: " in told and "variants.ste.align.reward.embedding: " in told
    assert "needed by the variant va-pi" in told and "needed by the variant ar-grpo" in told
