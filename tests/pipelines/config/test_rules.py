"""Parameters that do not go together are refused, before any work, with the name of a key."""

import pytest

from pipelines.config.loading import check_params
from pipelines.config.profiles import read_profile
from tests.pipelines.config.test_params import put
from vapi_core.errors import ParameterError


@pytest.fixture
def content():
    return read_profile("mnist")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("align.seeds", [4, 4], "twice"),
        ("subset.image_size", 30, "token grid"),
        ("subset.splits", {"train": 10}, "not defined"),
        ("subset.path", "somewhere", "folder"),
        ("subset.dataset", {"split": "train", "image_column": "image", "target_column": "label"}, "no other"),
        ("subset.source", "scenes", "task c2i needs one of mnist, folder, dataset, webdataset"),
        ("subset.source", "folder", r"classifiers\.uci: it reads digits, and is for the source mnist, not folder"),
        ("subset.prompts", 5, "task t2i needs it"),
        ("tokenizer.gray", True, "leave it out"),
        ("tokenizer.norm_groups", 48, "divide into 48 groups"),
        ("tokenizer.decoder_multipliers", [1, 1], "same number"),
        ("tokenizer.encoder_multipliers", [1, 1, 2, 2], "must be 1"),
        ("tokenizer.unquantized_steps", 500, "less than tokenizer.training.steps, 500"),
        ("tokenizer.training", None, "needed where it is null"),
        ("generator.heads", 3, "does not divide"),
        ("generator.heads", 64, "multiple of 4"),
        ("generator.kv_heads", 3, "divide by kv_heads"),
        ("generator.checkpoint", "c2i_XL_384.pt", "null where generator.checkpoint is imported"),
        ("generator.training.micro_batch_size", 5, "does not divide into micro-batches of 5"),
        ("sample.guidance_scales", [1.0, 1.0], "twice"),
        ("sample.count", 9, "at least .*is_splits is 10"),
        ("classifiers.scorer.split", "train", "must not learn"),
        ("classifiers.scorer", None, r"needed by score\.extractors"),
        ("classifiers.uci", None, r"needed by score\.extractors"),
        ("score.reference_splits", ["scorer"], "trains the scorer"),
        ("score.reference_splits", ["heldout", "heldout"], "twice"),
        ("score.extractors", ["efficientnet-lite0", "efficientnet-lite0"], "twice"),
        ("subset.splits", {"train": 100, "scorer": 100, "heldout": 3}, "4 images of 'heldout'"),
        ("score.geneval", {"detector": "scenes"}, "text to image"),
    ],
)
def test_what_cannot_work_together_is_refused_by_name(content, key, value, message):
    put(content, key, value)
    with pytest.raises(ParameterError, match=message) as caught:
        check_params(content)
    assert caught.value.name.startswith(key.rsplit(".", 1)[0])


def test_every_broken_rule_stands_in_one_message(content):
    put(content, "generator.heads", 3)
    put(content, "sample.count", 9)
    with pytest.raises(ParameterError) as caught:
        check_params(content)
    assert "generator.heads: " in str(caught.value) and "sample.count: " in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("captions.encoder", "flan-t5-xl", "captions.encoder: a generator of the family janus reads janus, not flan"),
        ("generator.family", "llamagen", "captions.encoder: a generator of the family llamagen reads"),
        ("captions.truncate", True, "captions.truncate: prompts of the family janus are never cut off"),
        ("generator.checkpoint", None, "generator.checkpoint: the family janus is only imported"),
    ],
)
def test_janus_and_llamagen_cannot_be_mixed(key, value, told):
    content = read_profile("janus-pro-1b")
    put(content, key, value)
    with pytest.raises(ParameterError) as caught:
        check_params(content)
    assert told in str(caught.value)


def test_a_janus_knows_no_classes(content):
    content["generator"]["family"] = "janus"
    with pytest.raises(ParameterError, match=r"task: a generator of the family janus knows no classes"):
        check_params(content)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("subset.source", "mnist", "task t2i needs one of scenes"),
        ("captions", None, "captions: task t2i needs it"),
        ("subset.prompts", None, "subset.prompts: task t2i needs it"),
        ("score.geneval.detector", "mask2former", "is for the source scenes"),
        ("score.extractors", ["scorer-classifier"], "tells classes"),
    ],
)
def test_what_text_to_image_needs(key, value, told):
    content = read_profile("scenes")
    put(content, key, value)
    with pytest.raises(ParameterError) as caught:
        check_params(content)
    assert told in str(caught.value)
