"""A tiny Janus, for all tests of the family."""

import pytest

from tests.tiny import JANUS_CAPTIONS, write_tiny_janus
from vapi_core.models.janus.checkpoints import load_janus
from vapi_core.models.janus.prompts import load_prompt_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_janus(tmp_path_factory.mktemp("janus"))


@pytest.fixture(scope="module")
def janus(checkpoint):
    return load_janus(checkpoint)


@pytest.fixture(scope="module")
def prompts(checkpoint):
    return load_prompt_tokenizer(checkpoint).encode(JANUS_CAPTIONS)


@pytest.fixture(scope="module")
def whole(checkpoint):
    """transformers' own model."""
    from transformers import JanusForConditionalGeneration

    model = JanusForConditionalGeneration.from_pretrained(checkpoint).eval()
    model.generation_config.generation_kwargs = {"boi_token_id": 4}
    return model
