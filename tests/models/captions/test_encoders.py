import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import write_tiny_t5
from vapi_core.errors import FileError, ParameterError
from vapi_core.models.captions.encoders import (
    LongCaptionError,
    count_tokens,
    encode_captions,
    encode_padded,
    load_flan_t5,
    load_minilm,
    valid_features,
)

SHORT, LONG = "a green cat", "a photo of two green cats left of three red"  # 3 and 10 words, each a token


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return load_flan_t5(checkpoint, limit=8, dtype=torch.float32)


@pytest.fixture(scope="module")
def minilm():
    return load_minilm(limit=16)


# FLAN-T5


def test_features_are_the_last_hidden_states_of_the_whole_t5_model(checkpoint, encoder):
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(checkpoint).eval()
    ids = torch.tensor([[4, 11, 14, 1]])  # a green cat </s>
    with torch.no_grad():
        expected = model.encoder(input_ids=ids).last_hidden_state[0]
    captions = encode_captions(encoder, [SHORT.upper()], truncate=False)
    assert captions.features.shape == (1, 8, 16)
    assert torch.allclose(captions.features[0, 4:], expected, atol=1e-5)
    assert captions.mask.tolist() == [[False] * 4 + [True] * 4] and not captions.features[0, :4].any()


def test_a_caption_is_cleaned_before_it_is_tokenized(encoder):
    plain, dirty = (encode_captions(encoder, [c], truncate=False) for c in (SHORT, "<b>A</b> GREEN  cat http://a.com"))
    assert torch.equal(plain.features, dirty.features)


def test_features_do_not_depend_on_the_captions_beside(encoder):
    together = encode_captions(encoder, [SHORT, "a photo of a red dog", ""], truncate=False)
    for i, caption in enumerate([SHORT, "a photo of a red dog", ""]):
        alone = encode_captions(encoder, [caption], truncate=False)
        assert torch.allclose(together.features[i], alone.features[0], atol=1e-5)
    assert together.mask.sum(1).tolist() == [4, 7, 1]  # the closing token counts


def test_captions_over_the_limit_are_named_and_counted_before_anything_is_encoded(encoder):
    assert count_tokens(encoder, [SHORT, LONG]) == [4, 11] and count_tokens(encoder, []) == []
    with pytest.raises(
        LongCaptionError, match=r"captions\.truncate: 4 of 5 captions have more than 8.*\(11 tok.*; \.\.\."
    ) as e:
        encode_captions(encoder, [LONG, SHORT, *(LONG + " dog" * n for n in (1, 2, 3))], truncate=False)
    assert [long.tokens for long in e.value.captions] == [11, 12, 13, 14] and e.value.captions[0].caption == LONG


def test_where_it_is_allowed_a_long_caption_is_cut_off_and_closed_as_the_official_tokenization_does(encoder):
    captions = encode_captions(encoder, [SHORT, LONG], truncate=True)
    first_seven = encode_captions(encoder, [" ".join(LONG.split()[:7])], truncate=False)
    assert captions.mask.sum(1).tolist() == [4, 8]
    assert torch.allclose(captions.features[1], first_seven.features[0], atol=1e-5)


def test_everything_that_decides_the_features_is_in_the_fingerprint(checkpoint, encoder, tmp_path):
    assert load_flan_t5(checkpoint, limit=8, dtype=torch.float32).fingerprint == encoder.fingerprint
    changed = shutil.copytree(checkpoint, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    weights["encoder.block.1.layer.0.SelfAttention.q.weight"][0, 0] += 0.1
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    other_words = shutil.copytree(checkpoint, tmp_path / "words")
    text = (other_words / "tokenizer.json").read_text()
    (other_words / "tokenizer.json").write_text(text.replace("▁cats", "▁bats"))
    fingerprints = {
        load_flan_t5(path, limit=limit, dtype=dtype).fingerprint
        for path, limit, dtype in [
            (checkpoint, 8, torch.float32),
            (checkpoint, 9, torch.float32),
            (checkpoint, 8, torch.bfloat16),
            (changed, 8, torch.float32),
            (other_words, 8, torch.float32),
        ]
    }
    assert len(fingerprints) == 5


def test_a_checkpoint_that_lacks_weights_of_the_encoder_is_refused_instead_of_filled_with_random_ones(
    checkpoint, tmp_path
):
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["encoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(FileError, match=r"1 of the encoder's weights are missing, encoder\.block\.1.*q\.weight"):
        load_flan_t5(broken)


@pytest.mark.parametrize("damage", ["nowhere", "empty", "truncated", "no tokenizer", "no json"])
def test_a_folder_without_a_whole_encoder_is_named_with_the_remedy(checkpoint, tmp_path, damage):
    folder = tmp_path / "t5"
    if damage == "empty":
        folder.mkdir()
    elif damage != "nowhere":
        shutil.copytree(checkpoint, folder)
    if damage == "truncated":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    if damage == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    if damage == "no json":
        (folder / "config.json").write_text("{")
    with pytest.raises(FileError, match=r"t5: no text encoder can be loaded.*hf download google/flan-t5-xl"):
        load_flan_t5(folder)


def test_a_hub_id_that_is_not_in_the_local_cache_is_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileError, match="google/flan-t5-xl: no text encoder can be loaded"):
        load_flan_t5()
    assert list(tmp_path.iterdir()) == []


# MiniLM


def test_minilm_gives_one_feature_a_token_that_tells_what_the_caption_means(minilm):
    captions = encode_captions(minilm, ["a cat", "a kitten", "the stock market fell"], truncate=False)
    assert captions.features.shape == (3, 16, 384) and captions.mask.sum(1).tolist() == [
        4,
        4,
        6,
    ]  # [CLS] and [SEP] count
    means = torch.stack([f[m].mean(0) for f, m in zip(captions.features, captions.mask, strict=True)])
    means = torch.nn.functional.normalize(means, dim=-1)  # what the sentence encoder does
    assert means[0] @ means[1] > 0.6 > 0.3 > means[0] @ means[2]


def test_minilm_keeps_words_that_llamagen_would_clean_away(minilm):
    plain, address = (encode_captions(minilm, [c], truncate=False) for c in ("a cat", "a cat www.cat.com"))
    assert address.mask.sum() > plain.mask.sum()


def test_minilm_has_512_positions(minilm):
    with pytest.raises(ParameterError, match=r"captions\.tokens: MiniLM reads 512 tokens at most, not 513"):
        load_minilm(limit=513)


def test_features_too_large_for_half_precision_and_not_a_number_are_refused():
    mask = torch.tensor([[1, 0]])
    large = torch.full((1, 2, 3), 7e4)
    assert valid_features(large, mask, np.float32)[0].tolist() == [[7e4] * 3]
    with pytest.raises(ParameterError, match=r"captions\.dtype: .*float16; use float32"):
        valid_features(large, mask, np.float16)
    with pytest.raises(ParameterError, match=r"captions\.dtype"):
        valid_features(large * torch.nan, mask, np.float32)


def test_a_batch_is_padded_to_its_longest_caption(encoder):
    features, mask = encode_padded(encoder, [SHORT, "a cat"])
    assert features.shape == (2, 4, 16) and mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
