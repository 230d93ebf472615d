"""What the families of generators answer, and that each reads back as conditions what it wrote of texts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import JANUS_CAPTIONS, tiny_generator, tiny_tokenizer, write_tiny_janus
from vapi_core.errors import FileError, ParameterError
from vapi_core.files import sha256_file
from vapi_core.models.captions.encoders import LongCaptionError
from vapi_core.models.checkpoints import load_model, save_model
from vapi_core.models.families import FAMILIES
from vapi_core.models.family import CaptionConfig
from vapi_core.models.llamagen.checkpoints import export_official
from vapi_core.models.llamagen.generator import GeneratorConfig
from vapi_core.models.llamagen.tokenizer import TokenizerConfig
from vapi_core.models.policy import Captions, Prompts

CPU = torch.device("cpu")
JANUS_SHAPE = GeneratorConfig(dim=32, layers=2, heads=4, grid=4, codebook_size=24)  # of `write_tiny_janus`
JANUS_TOKENIZER = TokenizerConfig(
    codebook_size=24,
    codebook_dim=4,
    base_channels=32,
    encoder_multipliers=(1, 1, 1),
    decoder_multipliers=(1, 1, 1),
    res_blocks=1,
    z_channels=32,
)


@pytest.fixture(scope="module")
def janus(tmp_path_factory):
    return str(write_tiny_janus(tmp_path_factory.mktemp("janus")))


@pytest.fixture(params=["minilm", "minilm standardized", "janus"])
def captions(request, janus):
    """A family and a configuration of its captions."""
    if request.param == "janus":
        return FAMILIES["janus"], CaptionConfig(encoder="janus", checkpoint=janus, tokens=64)
    standardize = request.param.endswith("standardized")
    return FAMILIES["llamagen"], CaptionConfig(encoder="minilm", tokens=16, standardize=standardize, dtype="float32")


def write(captions, directory, texts=JANUS_CAPTIONS, **changes) -> tuple[dict[str, float], int]:
    """Metrics, and how many texts were told to be done."""
    family, config = captions
    done: list[int] = []
    metrics = family.write_texts(directory, texts, texts, replace(config, **changes), CPU, done.append)
    return metrics, sum(done)


def parts(condition: Captions | Prompts) -> list[torch.Tensor]:
    """What of a condition is read: features or tokens, and the mask."""
    values, mask = list(vars(condition).values())
    return [values[mask], mask]


def test_an_encoder_belongs_to_one_family():
    encoders = [name for family in FAMILIES.values() for name in family.encoders]
    assert sorted(encoders) == ["flan-t5-xl", "janus", "minilm"]


def test_only_llamagen_knows_classes_cuts_captions_off_and_is_trained_here():
    for answer in ("classes", "truncates", "trains"):
        assert [name for name, family in FAMILIES.items() if getattr(family, answer)] == ["llamagen"]


def test_texts_come_back_as_conditions_in_any_order_and_new_ones_are_read_alike(captions, tmp_path):
    metrics, done = write(captions, tmp_path / "captions", [*JANUS_CAPTIONS, JANUS_CAPTIONS[0]])
    assert metrics["captions"] == done == len(JANUS_CAPTIONS)  # equal ones are read once
    family, config = captions
    texts = JANUS_CAPTIONS[::-1]
    kept = family.open_conditions(tmp_path / "captions", texts, "").batch(np.arange(3), CPU)
    given = family.open_encoder(tmp_path / "captions", texts, config, CPU, "")(texts)
    assert len(kept) == len(given) == 3
    for a, b in zip(parts(kept), parts(given), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    alone = family.open_conditions(tmp_path / "captions", texts, "").batch(np.array([2]), CPU)
    assert torch.allclose(parts(alone)[0], parts(kept[2:3])[0], atol=1e-6)


def test_texts_that_are_too_long_are_named_when_they_are_written_and_when_they_are_new(captions, tmp_path):
    family, config = captions
    long = "a photo of " + "a red cat and " * 40 + "a dog"
    with pytest.raises(LongCaptionError, match="1 of 2 captions have more than"):
        write(captions, tmp_path / "refused", ["a dog", long])
    assert not (tmp_path / "refused").exists()
    write(captions, tmp_path / "captions")
    with pytest.raises(LongCaptionError, match="1 of 2 captions have more than"):
        family.open_encoder(tmp_path / "captions", ["a dog", long], config, CPU, "")


def test_where_texts_were_never_written_the_remedy_is_told(captions, tmp_path):
    family, _ = captions
    with pytest.raises(FileError, match="Make it anew"):
        family.open_conditions(tmp_path / "nowhere", JANUS_CAPTIONS, "Make it anew.")


def test_a_generator_of_captions_is_shaped_by_their_features_and_one_of_prompts_is_not(captions, tmp_path):
    family, config = captions
    write(captions, tmp_path / "captions")
    expected = {"caption_dim": 384, "caption_tokens": config.tokens} if config.encoder == "minilm" else {}
    assert family.caption_shape(tmp_path / "captions", "") == expected


def test_llamagens_models_are_imported_with_the_hash_of_their_file(tmp_path):
    family = FAMILIES["llamagen"]
    for make, read in ((tiny_generator, family.import_generator), (tiny_tokenizer, family.import_tokenizer)):
        model, path = make(seed=1), str(tmp_path / "official.pt")
        export_official(path, model)
        imported, origin = read(path, model.config)
        assert all(torch.equal(a, b) for a, b in zip(imported.parameters(), model.parameters(), strict=True))
        assert origin == {"imported_sha256": sha256_file(path)} and not imported.training


def test_a_janus_is_imported_with_its_place_and_saved_as_any_policy(janus, tmp_path):
    policy, origin = FAMILIES["janus"].import_generator(janus, JANUS_SHAPE)
    assert origin == {"imported_from": janus}
    save_model(tmp_path, "generator", policy, **origin)
    again = load_model(tmp_path, "generator")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), policy.parameters(), strict=True))
    tokenizer, origin = FAMILIES["janus"].import_tokenizer(janus, JANUS_TOKENIZER)
    assert tokenizer.config.downsample == 4 and origin == {"imported_from": janus}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layers": 24}, "generator.layers: .* has 2, not 24"),
        ({"dim": 64}, "generator.dim: .* has 32, not 64"),
        ({"codebook_size": 16384}, "tokenizer.codebook_size: .* draws from 24 codes"),
        ({"grid": 8}, "subset.image_size: .* makes images of 16 pixels"),
    ],
)
def test_a_janus_of_another_shape_is_refused_by_the_key_that_says_so(janus, changes, told):
    with pytest.raises(ParameterError, match=told):
        FAMILIES["janus"].import_generator(janus, replace(JANUS_SHAPE, **changes))


def test_a_vq_model_of_another_shape_is_refused_by_the_key_that_says_so(janus):
    with pytest.raises(ParameterError, match="tokenizer.z_channels: .* has 32, not 64"):
        FAMILIES["janus"].import_tokenizer(janus, replace(JANUS_TOKENIZER, z_channels=64))
