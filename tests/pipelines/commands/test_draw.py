"""The command from prompts to a folder of images, after a tiny text-to-image run."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pipelines.cli.__main__ import main
from pipelines.commands.draw import open_text
from pipelines.config.loading import check_params
from pipelines.config.profiles import read_profile
from pipelines.frame.inputs import caption_conditions, open_prompts
from pipelines.frame.stage import Stage, UntrackedRun
from pipelines.stages import generator, sample, subset, tokenize, tokenizer
from tests.pipelines.stages.test_janus import fill_workplace, run, tiny
from vapi_core.models.captions import standardization
from vapi_core.models.captions.encoders import LongCaptionError
from vapi_core.scoring.geneval.folder import read_folder, sample_path

REPOSITORY = Path(__file__).parents[3]
SET = "data/samples/experiment/base/t1.0-g5.0-0"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which a tiny Janus was imported and sampled from."""
    path = fill_workplace(tmp_path_factory.mktemp("draw"))
    content = tiny(path)
    content["sample"]["guidance_scales"] = [5.0]
    (path / "params.yaml").write_text(yaml.safe_dump(content))
    before = os.getcwd()
    os.chdir(path)
    try:
        params = check_params(content)
        for module in (subset, tokenizer, tokenize, generator):
            run(module, params)
        run(sample, params, variant="base")
    finally:
        os.chdir(before)
    return path


def test_prompts_are_read_as_the_captions_of_the_training_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = read_profile("scenes", REPOSITORY)
    content["subset"] |= {"prompts": 1, "splits": {"train": 60, "scorer": 60, "heldout": 60}}
    content["tokenizer"] |= {"codebook_size": 16, "unquantized_steps": 1}
    content["tokenizer"]["training"] |= {"steps": 2, "warmup_steps": 1, "batch_size": 4}
    params = check_params(content)
    for module in (subset, tokenizer, tokenize):
        run(module, params)
    texts = [prompt.text for prompt in open_prompts()]
    cpu = torch.device("cpu")
    kept = caption_conditions(texts, params.generator.family).batch(np.arange(len(texts)), cpu)
    given = open_text(params, texts, cpu)(texts)
    assert torch.equal(given.mask, kept.mask)
    torch.testing.assert_close(given.features[given.mask], kept.features[kept.mask], atol=0.02, rtol=0)  # float16


def test_a_caption_that_is_too_long_stops_before_features_are_measured(monkeypatch):
    content = read_profile("scenes", REPOSITORY)
    content["captions"]["tokens"] = 6
    monkeypatch.setattr(standardization, "encode_padded", lambda *arguments: pytest.fail("captions were encoded"))
    texts, stage = ["a photo of a two"], Stage(None, check_params(content), torch.device("cpu"), UntrackedRun(), "key")
    with pytest.raises(LongCaptionError, match="1 of 1 captions have more than 6 tokens"):
        tokenize.encode_texts(texts, texts, stage)


@pytest.fixture
def place(finished, monkeypatch):
    monkeypatch.chdir(finished)
    yield finished
    shutil.rmtree(finished / "drawn", ignore_errors=True)


def pixels(folder):
    return np.stack([np.asarray(Image.open(s.path)) for s in read_folder(folder, classes=None).samples])


def test_the_prompts_of_the_run_give_the_images_of_the_run(place, capsys):
    assert main(["sample", "drawn", "--prompts", "prompts.jsonl", "--batch-size", "3"]) == 0
    assert "4 images in drawn" in capsys.readouterr().out
    expected = np.load(f"{SET}/images.npy")
    assert (np.abs(pixels("drawn").astype(int) - expected).max((1, 2, 3)) <= 1).all()  # rounding of another batch shape
    assert main(["export", "folder", SET, "exported"]) == 0
    assert np.array_equal(pixels("exported"), expected)


def test_an_interrupted_run_goes_on_where_it_was(place, capsys):
    command = ["sample", "drawn", "--prompts", "prompts.jsonl"]
    assert main(command) == 0
    whole = pixels("drawn")
    sample_path("drawn", 1, 0).unlink()
    kept = sample_path("drawn", 0, 1).stat().st_mtime_ns
    assert main(command) == 0 and np.array_equal(pixels("drawn"), whole)
    assert sample_path("drawn", 0, 1).stat().st_mtime_ns == kept


def test_any_prompts_and_settings_will_do(place):
    (place / "drawbench.csv").write_text("Prompts,Category\nA red dog,Colors\nTwo cats,Counting\nA cat,Simple\n")
    command = [
        "sample",
        "drawn",
        "--prompts",
        "drawbench.csv",
        "--count",
        "1",
        "--guidance",
        "1",
        "--temperature",
        "0.5",
    ]
    assert main(command) == 0
    samples = read_folder("drawn", classes=None)
    assert [s.prompt.text for s in samples.samples] == ["A red dog", "Two cats", "A cat"] and not samples.missing


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--guidance", "2"], "drawn: its images are others: guidance_scale 5.0, not 2.0"),
        (["--count", "3"], "its images are others: images_per_prompt 2, not 3"),
        (["--variant", "va-pi"], "data/aligned/va-pi/0/generator.json: the file is missing. To make it anew, run"),
        (["--variant", "vapi"], "there is no variant 'vapi'; there are base, "),
    ],
)
def test_images_drawn_otherwise_are_not_mixed(place, capsys, more, told):
    assert main(["sample", "drawn", "--prompts", "prompts.jsonl"]) == 0
    assert main(["sample", "drawn", "--prompts", "prompts.jsonl", *more]) == 1
    assert told in capsys.readouterr().err


def test_a_prompt_with_an_unknown_class_or_too_many_words_is_named_before_anything_is_drawn(place, capsys):
    (place / "wrong.jsonl").write_text(
        '{"tag": "counting", "include": [{"class": "unicorn", "count": 1}], "prompt": "a"}'
    )
    assert main(["sample", "drawn", "--prompts", "wrong.jsonl"]) == 1
    assert "line 1: unknown class 'unicorn'" in capsys.readouterr().err
    (place / "long.txt").write_text("a dog\n" + "a very long prompt " * 200)
    assert main(["sample", "drawn", "--prompts", "long.txt"]) == 1
    assert "1 of 2 captions have more than 512 tokens" in capsys.readouterr().err
    assert not list(place.glob("drawn/*/samples"))
