"""What a profile needs from elsewhere is known, and looked for, before any work."""

import shutil
from pathlib import Path

import pytest

from pipelines.cli.__main__ import main
from pipelines.config import assets
from pipelines.config.assets import assets_of, link_assets, needed_by, require_assets
from pipelines.config.loading import check_params
from pipelines.config.profiles import compose, read_profile
from vapi_core.errors import VapiError

FILES = {
    "subset.path": "assets/imagenet/train",
    "tokenizer.checkpoint": "assets/vq_ds16_c2i.pt",
    "generator.checkpoint": "assets/c2i_XXL_384.pt",
    "align.lpips_checkpoint": "assets/lpips",
    "score.inception_checkpoint": "assets/weights-inception-2015-12-05-6726825d.pth",
    "score.reference_batch": "assets/VIRTUAL_imagenet256_labeled.npz",
}


ROOT = Path(__file__).parents[3]


EXPERIMENT = ("base", "va-pi", "cross-entropy")


def profile(name):
    return check_params(read_profile(name, ROOT))


@pytest.fixture
def params():
    return profile("llamagen-xxl-c2i")


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A checkout without any assets, and an empty hub cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *arguments: None)
    return tmp_path


def put(root: Path, *places: str) -> None:
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text("content")


def test_the_default_profile_needs_nothing(empty):
    assert assets_of(profile("mnist")) == []


def test_an_imagenet_profile_needs_images_checkpoints_lpips_inception_and_the_reference_batch(params):
    assert {asset.parameter: asset.place for asset in assets_of(params)} == FILES


def test_every_official_file_is_told_with_where_to_get_it(params):
    sources = {asset.place: asset.source for asset in assets_of(params)}
    assert sources["assets/c2i_XXL_384.pt"] == "Hugging Face repository FoundationVision/LlamaGen, file c2i_XXL_384.pt"
    assert "openai/guided-diffusion" in sources["assets/VIRTUAL_imagenet256_labeled.npz"]
    assert "your own file" not in sources.values()


def test_the_command_lists_what_is_missing_and_ends_with_1_until_nothing_is(empty, capsys):
    put(empty, "assets/vq_ds16_c2i.pt")
    (empty / "params.yaml").write_text(compose("llamagen-xxl-c2i", ROOT))
    assert main(["assets", "check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "there    assets/vq_ds16_c2i.pt (tokenizer.checkpoint; stage tokenizer)" in lines
    assert "missing  assets/c2i_XXL_384.pt (generator.checkpoint; stage generator)" in lines
    assert "llamagen-xxl-c2i: 6 of its files are missing" in lines[-1]

    put(empty, *(place for place in FILES.values() if "lpips" not in place and "imagenet/" not in place))
    put(empty, "assets/lpips/vgg16-397923af.pth", "assets/lpips/weights-vgg16-lpips.pth", "assets/imagenet/train/a")
    assert main(["assets", "check"]) == 0
    assert "nothing is missing" in capsys.readouterr().out


def test_what_is_there_but_empty_is_missing_and_told_as_empty(params, empty, monkeypatch, capsys):
    (empty / "assets/imagenet/train/n01440764").mkdir(parents=True)
    put(empty, "assets/lpips/vgg16-397923af.pth")
    weights = ("assets/c2i_XXL_384.pt", "assets/lpips/weights-vgg16-lpips.pth")
    for place in weights:
        (empty / place).touch()
    states = {asset.files or asset.place: asset.state for asset in assets_of(params)}
    assert states[("vgg16-397923af.pth",)] == "there"
    assert {*states.values()} == {"there", "missing"} and [*states.values()].count("there") == 1
    lines = [line.strip() for line in assets.table(assets_of(params)).splitlines()]
    told = [line.removesuffix(" is there, but empty") for line in lines if line.endswith("empty")]
    assert told == ["assets/imagenet/train", weights[0], weights[1]]


def test_images_behind_a_link_are_there(params, empty):
    put(empty, "disk/n01440764/a.jpeg")
    (empty / "assets/imagenet/train").mkdir(parents=True)
    (empty / "assets/imagenet/train/n01440764").symlink_to(empty / "disk/n01440764")
    assert assets_of(params)[0].state == "there"


def test_a_stage_asks_for_what_it_and_the_stages_behind_it_read(params, empty):
    found = assets_of(params)
    parameters = {
        stage: [asset.parameter for asset in needed_by(stage, found, EXPERIMENT)]
        for stage in ("subset", "sample-control@base")
    }
    assert set(parameters["subset"]) == set(FILES)
    assert parameters["sample-control@base"] == ["score.inception_checkpoint", "score.reference_batch"]
    for table in ("report", "table@noise"):
        assert needed_by(table, found, EXPERIMENT) == []
    with pytest.raises(VapiError, match=r"c2i_XXL_384\.pt .*\n.*FoundationVision/LlamaGen(.|\n)*vapi assets check"):
        require_assets(params, "subset")
    require_assets(params, "report")


def test_what_rivals_alone_need_stops_nobody_else(empty):
    found = assets_of(profile("llamagen-xl-c2i"))  # its rival is AR-GRPO
    own = [asset for asset in found if asset.variants == ("ar-grpo",)]
    assert [asset.place for asset in own] == ["timm/vit_large_patch14_clip_224.openai", "xswu/HPSv2"]
    assert [asset.parameter for asset in own] == [
        f"variants.ar-grpo.align.{name}_checkpoint" for name in ("clip", "hpsv2")
    ]
    for stage in ("subset", "align@va-pi", "align@noise-0_25", "sample@ar-grpo"):
        assert not set(own) & set(needed_by(stage, found, EXPERIMENT)), stage
    assert set(own) <= set(needed_by("align@ar-grpo", found, EXPERIMENT))


def test_what_one_variant_alone_reads_is_asked_for_under_its_own_key(empty):
    content = read_profile("llamagen-xl-c2i", ROOT)
    content["variants"]["noise-0_25"]["align"]["lpips_checkpoint"] = "assets/other"
    lpips = [asset for asset in assets_of(check_params(content)) if asset.parameter.endswith("lpips_checkpoint")]
    places = {asset.place: asset.parameter for asset in lpips}
    assert places == {
        "assets/lpips": "align.lpips_checkpoint",
        "assets/other": "variants.noise-0_25.align.lpips_checkpoint",
    }
    needed = {asset.place for asset in needed_by("align@noise-0_25", lpips, EXPERIMENT)}
    assert needed == {"assets/other"}


def test_a_data_set_of_the_hub_is_fetched_by_its_stage_and_not_missing(params, empty):
    content = read_profile("llamagen-xxl-c2i", ROOT)
    dataset = {"split": "train", "image_column": "image", "target_column": "label"}
    content["subset"] |= {"source": "dataset", "path": "ILSVRC/imagenet-1k", "dataset": dataset}
    assert assets_of(check_params(content))[0].state == "fetched when needed"


def test_an_unknown_profile_is_named_with_the_known_ones(capsys):
    assert main(["assets", "check", "imagenet"]) == 1
    assert "there is no profile 'imagenet'; there are" in capsys.readouterr().err


def test_a_copy_of_the_repository_has_the_assets_that_git_ignores_and_the_original_outlives_it(params, empty):
    put(empty / "original", *FILES.values())
    copied = empty / "copy"
    copied.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copied)
        link_assets(params, empty / "original")
        link_assets(params, empty / "original")  # of the next stage: they are there
        assert all(Path(place).is_file() for place in FILES.values())
    shutil.rmtree(copied)  # as DVC does in the end
    assert all((empty / "original" / place).is_file() for place in FILES.values())
