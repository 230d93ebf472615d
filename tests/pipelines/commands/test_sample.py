"""Images from checkpoints of every kind, without an experiment."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.cli.__main__ import main
from pipelines.commands.checkpoint import generator_config, tokenizer_config
from tests.tiny import CAPTIONED, tiny_generator, tiny_tokenizer, write_tiny_janus
from vapi_core.data.images import to_uint8
from vapi_core.models.checkpoints import save_model
from vapi_core.models.llamagen.checkpoints import export_official
from vapi_core.models.llamagen.generator import OFFICIAL_GENERATORS, Generator, GeneratorConfig
from vapi_core.models.llamagen.tokenizer import OFFICIAL_TOKENIZERS, Tokenizer
from vapi_core.sampling.sampler import SamplingConfig, generate, sampling_uniforms
from vapi_core.scoring.geneval.folder import read_folder

SIDE = 6  # pixels: a grid of 3, twice as many pixels


@pytest.fixture
def official(tmp_path, monkeypatch):
    """LlamaGen's two files, tiny, and the same models as a folder of ours."""
    monkeypatch.chdir(tmp_path)
    export_official("gpt.pt", tiny_generator())
    export_official("vq.pt", tiny_tokenizer())
    save_model("ours", "generator", tiny_generator())
    save_model("ours", "tokenizer", tiny_tokenizer())
    return ["--generator", "gpt.pt", "--tokenizer", "vq.pt", "--image-size", str(SIDE), "--heads", "4"]


def pixels(folder) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))]).astype(int)


def apart(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference. 1 is allowed: batches of other sizes round differently; one equal batch did once too."""
    return int(np.abs(a - b).max())


def test_official_files_give_the_images_that_the_models_draw(official, tmp_path, capsys):
    assert main(["sample", "drawn", *official, "--classes", "3,0", "--count", "2", "--seed", "7"]) == 0
    assert "4 images in drawn" in capsys.readouterr().out
    paths = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert paths == [f"drawn/{number}/{k:04}.png" for number in (0, 3) for k in range(2)]
    classes, uniforms = torch.tensor([3, 3, 0, 0]), sampling_uniforms(7, range(4), 9)
    with torch.inference_mode():
        tokens = generate(tiny_generator(), classes, uniforms, SamplingConfig())
        expected = to_uint8(tiny_tokenizer().decode(tokens))[[2, 3, 0, 1]]
    assert apart(pixels(tmp_path / "drawn"), expected) <= 1


def test_a_folder_of_ours_holds_both_models_and_gives_the_same_images(official, tmp_path):
    wanted = ["--classes", "1,2,4", "--guidance", "2", "--top-k", "5", "--batch-size", "2"]
    assert main(["sample", "a", *official, *wanted]) == 0
    assert main(["sample", "b", "--generator", "ours", *wanted]) == 0
    assert apart(pixels(tmp_path / "a"), pixels(tmp_path / "b")) <= 1


def test_an_interrupted_run_goes_on_and_other_images_are_not_mixed_in(official, tmp_path, capsys):
    command = ["sample", "drawn", *official, "--classes", "1", "--count", "3"]
    assert main(command) == 0
    whole = pixels(tmp_path / "drawn")
    (tmp_path / "drawn/1/0001.png").unlink()
    assert main(command) == 0 and apart(pixels(tmp_path / "drawn"), whole) <= 1
    assert main([*command, "--seed", "1"]) == 1
    assert "drawn: its images are others: sampling_seed 0, not 1" in capsys.readouterr().err


def test_a_janus_folder_draws_prompts_into_the_layout_that_geneval_scores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny_janus(tmp_path / "janus")
    command = ["sample", "drawn", "--generator", "janus", "--guidance", "5", "--count", "2"]
    assert main([*command, "--prompt", "a red dog", "--prompt", "two cats"]) == 0
    samples = read_folder("drawn", classes=None)
    assert [s.prompt.text for s in samples.samples] == ["a red dog"] * 2 + ["two cats"] * 2 and not samples.missing


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--classes", "5"], "--classes: this generator has the classes 0 to 4, and not 5."),
        (["--classes", "one"], "--classes: 'one' are no numbers; write e.g. 207,360."),
        (["--classes", "1,1"], "--classes: 1 is there twice"),
        ([], "--classes: give either classes, or prompts"),
        (["--prompt", "a dog"], "--prompts: this generator draws by classes"),
        (["--classes", "1", "--image-size", "7"], "--image-size: it is 7, no multiple of the tokenizer's 2."),
        (["--classes", "1", "--heads", "3"], "--heads: width 32 and 2 layers are no official model's"),
        (["--classes", "1", "--tokenizer", "gpt.pt"], "gpt.pt: this is no tokenizer of LlamaGen's"),
        (["--classes", "1", "--generator", "vq.pt"], "vq.pt: this is no generator of LlamaGen's"),
        (
            ["--classes", "1", "--generator", "ours", "--image-size", "8"],
            "--image-size: ours makes images of 6 pixels.",
        ),
        (["--classes", "1", "--generator", "nowhere.pt"], "nowhere.pt: the file is missing"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_anything_is_written(official, tmp_path, capsys, more, told):
    assert main(["sample", "drawn", *official, *more]) == 1
    assert f"error: {told}" in capsys.readouterr().err and not (tmp_path / "drawn").exists()


def test_a_generator_of_another_codebook_or_of_captions_of_its_own_run_is_refused(official, capsys):
    save_model("other", "generator", tiny_generator(codebook_size=8))
    save_model("captioned", "generator", tiny_generator(**CAPTIONED))
    command = ["sample", "drawn", "--tokenizer", "vq.pt", "--generator"]
    assert main([*command, "other", "--classes", "1"]) == 1
    assert "--tokenizer: it has 24 codes, and the generator draws from 8." in capsys.readouterr().err
    assert main([*command, "captioned", "--prompt", "a dog"]) == 1
    assert "--generator: this generator reads features of width 6 of its own run" in capsys.readouterr().err


@pytest.mark.parametrize("name", OFFICIAL_TOKENIZERS)
def test_the_shape_of_an_official_tokenizer_is_read_off_its_tensors(name):
    config = OFFICIAL_TOKENIZERS[name]
    with torch.device("meta"):
        shapes = {key: tuple(t.shape) for key, t in Tokenizer(config).state_dict().items()}
    assert tokenizer_config(shapes, name) == config


@pytest.mark.parametrize("captions", [{}, {"caption_dim": 2048, "caption_tokens": 120, "classes": 1}])
def test_the_shape_of_an_official_generator_is_read_off_its_tensors(captions):
    dim, layers, heads = OFFICIAL_GENERATORS["GPT-B"]
    config = GeneratorConfig(dim=dim, layers=layers, heads=heads, kv_heads=heads, grid=24, **captions)
    with torch.device("meta"):
        shapes = {key: tuple(t.shape) for key, t in Generator(config).state_dict().items()}
    found = generator_config(shapes, "c2i_B_384.pt", 24, None)
    assert found.ffn_dim == config.ffn_dim
    assert {**vars(found), "multiple_of": 256} == vars(config)
