"""What a profile needs from elsewhere is known, and looked for, before any work."""

import shutil
from pathlib import Path

import pytest
from pipelines.variants.assets import assets_of, link_assets, main, needed_by, require_assets
from pipelines.config.params import check_params, load_params

from pipelines.variants import assets
from vapi_core.errors import VapiError

FILES = {
    "subset.path": "assets/imagenet/train",
    "tokenizer.checkpoint": "assets/vq_ds16_c2i.pt",
    "generator.checkpoint": "assets/c2i_XXL_384.pt",
    "align.lpips_checkpoint": "assets/lpips",
    "score.inception_checkpoint": "assets/weights-inception-2015-12-05-6726825d.pth",
    "score.reference_batch": "assets/VIRTUAL_imagenet256_labeled.npz",
}


@pytest.fixture
def params():
    return load_params(Path("profiles/llamagen-xxl-c2i.yaml"))


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
    profile = Path(__file__).parents[2] / "profiles/mnist.yaml"
    assert assets_of(load_params(profile)) == []


def test_an_imagenet_profile_needs_images_checkpoints_lpips_inception_and_the_reference_batch(params):
    assert {asset.parameter: asset.place for asset in assets_of(params)} == FILES


def test_every_official_file_is_told_with_where_to_get_it(params):
    sources = {asset.place: asset.source for asset in assets_of(params)}
    assert sources["assets/c2i_XXL_384.pt"] == "Hugging Face repository FoundationVision/LlamaGen, file c2i_XXL_384.pt"
    assert "openai/guided-diffusion" in sources["assets/VIRTUAL_imagenet256_labeled.npz"]
    assert "your own file" not in sources.values()


def test_the_command_lists_what_is_missing_and_ends_with_1_until_nothing_is(empty, capsys):
    profile = Path(__file__).parents[2] / "profiles/llamagen-xxl-c2i.yaml"
    put(empty, "assets/vq_ds16_c2i.pt")
    (empty / "params.yaml").write_text(profile.read_text())
    assert main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "there    assets/vq_ds16_c2i.pt (tokenizer.checkpoint; stage tokenizer)" in lines
    assert "missing  assets/c2i_XXL_384.pt (generator.checkpoint; stage generator)" in lines
    assert "llamagen-xxl-c2i: 6 of its files are missing" in lines[-1]

    put(empty, *(place for place in FILES.values() if "lpips" not in place and "imagenet/" not in place))
    put(empty, "assets/lpips/vgg16-397923af.pth", "assets/lpips/weights-vgg16-lpips.pth", "assets/imagenet/train/a")
    assert main([]) == 0
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
    parameters = {stage: [asset.parameter for asset in needed_by(stage, found)] for stage in ("subset", "sample-base")}
    assert set(parameters["subset"]) == set(FILES)
    assert parameters["sample-base"] == ["score.inception_checkpoint", "score.reference_batch"]
    assert needed_by("report", found) == []
    with pytest.raises(VapiError, match=r"c2i_XXL_384\.pt .*\n.*FoundationVision/LlamaGen(.|\n)*make check-assets"):
        require_assets(params, "subset")
    require_assets(params, "report")


def test_what_rivals_alone_need_stops_nobody_else(empty):
    params = load_params(Path(__file__).parents[2] / "profiles/llamagen-xl-c2i.yaml")  # its rival is AR-GRPO
    found = assets_of(params)
    rivals = [asset.place for asset in found if asset.stage == assets.RIVALS]
    assert rivals == ["timm/vit_large_patch14_clip_224.openai", "xswu/HPSv2"]
    assert not set(rivals) & {asset.place for asset in needed_by("subset", found)}
    assert set(rivals) <= {asset.place for asset in needed_by("align@ar-grpo-0", found)}


def test_a_data_set_of_the_hub_is_fetched_by_its_stage_and_not_missing(params, empty):
    content = params.model_dump(mode="json")
    dataset = {"split": "train", "image_column": "image", "target_column": "label"}
    content["subset"] |= {"source": "dataset", "path": "ILSVRC/imagenet-1k", "dataset": dataset}
    assert assets_of(check_params(content))[0].state == "fetched when needed"


def test_an_unknown_profile_is_named_with_the_known_ones(capsys):
    assert main(["imagenet"]) == 1
    assert "imagenet.yaml: there is no such profile; there are" in capsys.readouterr().err


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
