"""Prompts of Janus, from captions; a tiny tokenizer of the real kind."""

import json

import pytest

from tests.tiny import JANUS_CAPTIONS
from vapi_core.errors import FileError
from vapi_core.models.captions.encoders import LongCaptionError
from vapi_core.models.janus.prompts import load_prompt_tokenizer


def test_a_prompt_is_the_official_chat_template_around_the_caption(checkpoint):
    tokenizer = load_prompt_tokenizer(checkpoint)
    (ids,) = tokenizer.token_ids([" a dog\n"])
    assert tokenizer.tokenizer.decode(ids) == (
        "<｜begin▁of▁sentence｜><|User|>: a dog\n\n<|Assistant|>:<begin_of_image>"
    )
    assert ids[0] == tokenizer.bos_id and ids.count(tokenizer.bos_id) == 1


def test_a_prompt_that_is_too_long_is_named(checkpoint):
    tokenizer = load_prompt_tokenizer(checkpoint)
    lengths = tokenizer.check_length(JANUS_CAPTIONS, 60)
    assert lengths == [len(ids) for ids in tokenizer.token_ids(JANUS_CAPTIONS)]
    with pytest.raises(LongCaptionError, match="1 of 3 captions.*blue dog left"):
        tokenizer.check_length(JANUS_CAPTIONS, max(lengths) - 1)


def test_a_prompt_tokenizer_is_saved_beside_a_policy(checkpoint, tmp_path):
    load_prompt_tokenizer(checkpoint).save(tmp_path)
    again, first = load_prompt_tokenizer(tmp_path), load_prompt_tokenizer(checkpoint)
    assert again.token_ids(JANUS_CAPTIONS) == first.token_ids(JANUS_CAPTIONS) and again.pad_id == first.pad_id


def test_another_language_models_tokenizer_is_refused(checkpoint, tmp_path):
    content = json.loads((checkpoint / "tokenizer.json").read_text().replace("<begin_of_image>", "<begin_of_sound>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(
        (checkpoint / "tokenizer_config.json").read_text().replace("<begin_of_image>", "<begin_of_sound>")
    )
    with pytest.raises(FileError, match="<begin_of_image>"):
        load_prompt_tokenizer(tmp_path)
