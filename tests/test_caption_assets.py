"""Random files for a rehearsal of text to image: where the profile and the hub's cache have them, here shrunken."""

from pathlib import Path

import pytest

from pipelines.config.assets import CLIP, assets_of, needed_by
from pipelines.config.loading import check_params
from pipelines.config.profiles import read_profile
from tests import caption_assets, smoke_assets
from tests.tiny import TINY_JANUS, TINY_T5
from tests.tiny_vision import TINY_BACKBONE, TINY_CLIP, TINY_MASK2FORMER
from vapi_core.errors import VapiError
from vapi_core.models.captions.encoders import load_flan_t5
from vapi_core.models.clip import load_clip
from vapi_core.models.janus.checkpoints import load_janus, load_janus_tokenizer
from vapi_core.models.llamagen.checkpoints import import_official
from vapi_core.models.llamagen.generator import Generator
from vapi_core.scoring.geneval.detectors import COCO_CLASSES, Mask2Former
from vapi_core.scoring.geneval.folder import read_prompts
from vapi_core.sources import SOURCES

ROOT = Path(__file__).parents[1]
SMALL_TOKENIZER = {"codebook_size": 64, "base_channels": 32, "res_blocks": 1, "z_channels": 32}


@pytest.fixture
def written(monkeypatch, tmp_path):
    """Writes the files of a profile with small models into an empty folder; returns its params."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(smoke_assets, "write_inception", lambda path: path.write_bytes(b"tested with the whole path"))
    monkeypatch.setattr(caption_assets, "FLAN_T5_XL", TINY_T5)
    monkeypatch.setattr(caption_assets, "SWIN_SMALL", TINY_BACKBONE)
    monkeypatch.setattr(caption_assets, "MASK2FORMER", TINY_MASK2FORMER)
    monkeypatch.setattr(caption_assets, "CLIP_MODEL", TINY_CLIP)
    monkeypatch.setattr(caption_assets, "JANUS_VOCABULARY", 280)
    monkeypatch.setattr(caption_assets, "JANUS_PARTS", {part: TINY_JANUS[part] for part in ("vision", "vq")})

    def write(profile):
        content = read_profile(profile, ROOT)
        content["generator"] |= {"dim": 32, "layers": 2, "heads": 2, "multiple_of": 32}
        content["tokenizer"] |= SMALL_TOKENIZER
        content["subset"] |= {"image_size": 48, "splits": {"train": 12, "heldout": 4}}
        params = check_params(content)
        smoke_assets.write_smoke_assets(params)
        return params

    return write


def missing(params) -> list[str]:
    needed = needed_by("subset", assets_of(params), {"va-pi", "cross-entropy"})
    assert len(needed) > 7
    return [asset.place for asset in needed if asset.state == "missing"]


def test_llamagen_with_captions_finds_every_file_and_each_can_be_loaded(written):
    params = written("llamagen-xl-t2i")
    assert missing(params) == []
    images, plan = SOURCES["webdataset"].captioned(params.subset)
    assert len(images.captions) == 16 and set(images.captions) == set(caption_assets.CAPTIONS) and plan
    prompts = read_prompts(params.subset.prompts, COCO_CLASSES)
    assert [prompt.text for prompt in prompts] == [prompt["prompt"] for prompt in caption_assets.PROMPTS]
    assert load_flan_t5().dim == TINY_T5["d_model"]
    generator = Generator(params.generator.config(3, 64, 1, caption_dim=2048, caption_tokens=120))
    import_official(params.generator.checkpoint, generator)
    assert generator.output.weight.std() > 0.1
    assert len(Mask2Former().labels) == 80
    assert load_clip("ViT-L-14-quickgelu", caption_assets.hub_folder(CLIP[0])).model is not None


def test_janus_finds_its_policy_and_its_tokenizer_in_one_checkpoint(written):
    params = written("janus-pro-1b")
    assert missing(params) == []
    policy, tokenizer = load_janus(), load_janus_tokenizer()
    assert policy.config.text["num_hidden_layers"] == 2 and tokenizer.config.codebook_size == 24
    assert len(list(Path(smoke_assets.CAPTIONED).glob("*.jpg"))) == 16


def test_random_weights_never_go_into_the_cache_of_real_ones(monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(VapiError, match="^HF_HUB_CACHE is not set: random weights go into a cache of their own"):
        caption_assets.hub_folder("google/flan-t5-xl")
