"""Random files for a rehearsal: those of a full-size profile, here with its sizes shrunk."""

import numpy as np
import pytest
from PIL import Image

from pipelines.config.assets import assets_of, needed_by
from pipelines.config.loading import check_params
from pipelines.config.profiles import read_profile
from tests import smoke_assets
from vapi_core.models.llamagen.checkpoints import import_official
from vapi_core.models.llamagen.generator import Generator
from vapi_core.models.llamagen.tokenizer import Tokenizer

SMALL_GENERATOR = {"dim": 32, "layers": 2, "heads": 2, "multiple_of": 32}
SMALL_TOKENIZER = {"codebook_size": 64, "base_channels": 32, "res_blocks": 1, "z_channels": 32}


def small(profile: str):
    content = read_profile(profile)
    content["generator"] |= SMALL_GENERATOR
    content["tokenizer"] |= SMALL_TOKENIZER
    content["subset"]["image_size"] = 48
    return check_params(content)


@pytest.mark.parametrize("profile", ["llamagen-xl-c2i", "llamagen-xxl-c2i"])
def test_a_full_size_profile_finds_every_file_that_its_report_needs(monkeypatch, tmp_path, profile):
    monkeypatch.setattr(smoke_assets, "write_inception", lambda path: path.write_bytes(b"tested with the whole path"))
    monkeypatch.setattr(smoke_assets, "write_reference_batch", lambda path, *_: np.savez(path, mu=np.zeros(2)))
    monkeypatch.setattr(smoke_assets, "IMAGENET_CLASSES", (7, 2))
    params = small(profile)
    monkeypatch.chdir(tmp_path)
    smoke_assets.write_smoke_assets(params)
    needed = needed_by("subset", assets_of(params), {"va-pi", "cross-entropy"})
    assert len(needed) == 7 and [asset.place for asset in needed if asset.state == "missing"] == []
    images = [Image.open(path).size for path in (tmp_path / params.subset.path).glob("n*/*.JPEG")]
    assert len(images) == 14 and min(min(size) for size in images) > params.subset.image_size
    tokenizer = Tokenizer(params.tokenizer.config())
    import_official(params.tokenizer.checkpoint, tokenizer)
    generator = Generator(params.generator.config(3, 64, 7))
    import_official(params.generator.checkpoint, generator)
    assert generator.output.weight.std() > 0.1


def test_a_profile_that_imports_nothing_is_refused(capsys):
    assert smoke_assets.main(["--profile", "mnist"]) == 1
    assert "imports nothing" in capsys.readouterr().err
