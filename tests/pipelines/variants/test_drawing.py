"""Which image sets are drawn, of which classes, and that a stage that was killed goes on from what it has."""

import argparse
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pipelines.config.params import load_params
from pipelines.config.paths import GENERATOR, RUN_FILE, SUBSET, TOKENIZER, WORK

from pipelines.frame.inputs import open_samples
from pipelines.frame.stage import Stage
from pipelines.stages import sample
from pipelines.stages.sample import choose_classes, draw_images, plan, plan_sets, work
from tests.damage import check_every_flip_is_named
from tests.tiny import tiny_generator, tiny_tokenizer
from vapi_core import fingerprint
from vapi_core.data.sources import ImageSource
from vapi_core.data.subset import plan_subset, write_subset
from vapi_core.files import read_json, write_json
from vapi_core.models.checkpoints import save_model
from vapi_core.sampling.sampler import Sampler, SamplingConfig, generate


@pytest.fixture
def params():
    return load_params()


def test_the_base_is_drawn_at_the_control_temperatures_too(params):
    sets = plan_sets(params, "base")
    drawn = {(s.config.temperature, s.config.guidance_scale) for s in sets}
    main = params.sample.temperature
    expected = {(main, scale) for scale in params.sample.guidance_scales}
    assert drawn == expected | {(t, 1.0) for t in params.sample.control_temperatures}
    assert {s.seed for s in sets} == set(params.align.seeds)


def test_an_aligned_generator_is_drawn_with_the_seed_it_was_aligned_with(params):
    for s in plan_sets(params, "va-pi"):
        assert s.generator.parts[-2:] == ("va-pi", str(s.seed))


def test_every_set_has_a_folder_of_its_own(params):
    folders = [s.directory for model in ("base", *params.align.methods) for s in plan_sets(params, model)]
    assert len(folders) == len(set(folders))


def test_balanced_classes_are_equally_many_and_random_ones_follow_their_seed():
    assert np.bincount(choose_classes(100, 10, "balanced", 0)).tolist() == [10] * 10
    random = choose_classes(100, 10, "random", 0)
    assert random.min() >= 0 and random.max() <= 9
    assert np.array_equal(random, choose_classes(100, 10, "random", 0))
    assert not np.array_equal(random, choose_classes(100, 10, "random", 1))


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A checkout in which everything before `sample` is done: images of 12 pixels, five classes."""
    params = load_params()
    monkeypatch.chdir(tmp_path)
    source = ImageSource(
        "tiny", 12, tuple("abcde"), tuple("01234"), np.arange(5), lambda i: np.full((12, 12, 3), i, "u1")
    )
    write_subset(source, plan_subset(source.labels, source.classes, {"train": 5}, 0), SUBSET)
    save_model(TOKENIZER, "tokenizer", tiny_tokenizer(levels=3))
    save_model(GENERATOR, "generator", tiny_generator())
    write_json(GENERATOR / RUN_FILE, {"key": "abc"})
    return params


def run(params, **changes):
    """Runs the stage `sample-base`; returns the first set's directory."""
    changed = {"count": 11, "batch_size": 4, "guidance_scales": (1.0, 2.0), "control_temperatures": (), **changes}
    subset = params.subset.model_copy(update={"image_size": 12})
    align = params.align.model_copy(update={"seeds": (0,)})
    drawn = params.sample.model_copy(update=changed)
    params = params.model_copy(update={"sample": drawn, "subset": subset, "align": align})
    arguments = argparse.Namespace(model="base")
    work(Stage(plan(params, arguments), params, torch.device("cpu"), None, "key"), arguments)
    return plan_sets(params, "base")[0].directory


def test_a_killed_stage_goes_on_from_the_images_it_has_whatever_the_batch_size(workspace, monkeypatch):
    whole = np.load(run(workspace) / "images.npy")
    shutil.rmtree("data/samples")

    drawn = []

    def draw_and_die(sampler, tokenizer, class_ids, indices, *rest):
        if len(drawn) == 4:  # the first set is whole, of the second one batch is there
            raise KeyboardInterrupt
        drawn.append(indices)
        return draw_images(sampler, tokenizer, class_ids, indices, *rest)

    monkeypatch.setattr(sample, "draw_images", draw_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(workspace)
    shutil.rmtree("data/samples", ignore_errors=True)  # as DVC does before it runs a stage again

    drawn.clear()
    directory = run(workspace, batch_size=3)
    assert drawn == [range(4, 7), range(7, 10), range(10, 11)]
    np.testing.assert_array_equal(np.load(directory / "images.npy"), whole)
    assert not any((WORK / "samples" / "sample-base").iterdir())


def test_images_that_are_damaged_before_a_set_is_whole_are_drawn_anew_and_they_alone(workspace, monkeypatch):
    whole = np.load(run(workspace) / "images.npy")
    shutil.rmtree("data/samples")
    drawn = []

    def draw_and_die(sampler, tokenizer, class_ids, indices, *rest):
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(indices)
        return draw_images(sampler, tokenizer, class_ids, indices, *rest)

    monkeypatch.setattr(sample, "draw_images", draw_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(workspace)
    first = next(d for d in (WORK / "samples" / "sample-base").iterdir() if len(list((d / "done").iterdir())) == 3)
    content = bytearray((first / "rows.npy").read_bytes())
    content[128 + 5 * 12 * 12 * 3] ^= 1  # image 5, of the batch 4..8, behind the header
    (first / "rows.npy").write_bytes(content)

    drawn.clear()
    directory = run(workspace)
    assert drawn == [range(4, 8), range(8, 11)]  # the damaged ones of the first set, the rest of the second
    np.testing.assert_array_equal(np.load(directory / "images.npy"), whole)


def test_a_finished_set_is_hashed_so_that_whatever_byte_flips_is_noticed(workspace):
    directory = run(workspace)
    for name in ("images.npy", "labels.npy", "manifest.json"):
        check_every_flip_is_named(directory / name, lambda: open_samples(directory))


def test_without_a_batch_size_memory_says_how_many_are_drawn_at_once(workspace, monkeypatch):
    whole = np.load(run(workspace) / "images.npy")
    shutil.rmtree("data/samples")
    drawn = []

    def draw(sampler, tokenizer, class_ids, indices, *rest):
        drawn.append(len(indices))
        return draw_images(sampler, tokenizer, class_ids, indices, *rest)

    monkeypatch.setattr(sample, "draw_images", draw)
    directory = run(workspace, batch_size=None)
    assert set(drawn) == {11}
    np.testing.assert_array_equal(np.load(directory / "images.npy"), whole)


def test_images_of_other_settings_are_not_gone_on_with(workspace, monkeypatch):
    def die(*arguments):
        raise KeyboardInterrupt

    run(workspace)
    monkeypatch.setattr(sample, "draw_images", die)
    for change in ({"temperature": 0.5}, {"seed": 3}, {"classes": "random"}, {"save_size": 9}):
        with pytest.raises(KeyboardInterrupt):
            run(workspace, **change)
    assert len(list((WORK / "samples" / "sample-base").iterdir())) == 2  # of the last change alone


def test_images_that_other_code_has_drawn_are_not_gone_on_with(workspace, monkeypatch, tmp_path):
    code = shutil.copytree(fingerprint.CODE, tmp_path / "code", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "CODE", code)
    drawn = []

    def draw_and_die(sampler, tokenizer, class_ids, indices, *rest):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(indices)
        return draw_images(sampler, tokenizer, class_ids, indices, *rest)

    monkeypatch.setattr(sample, "draw_images", draw_and_die)
    for change in ("", "scoring/geneval.py", "sampling.py", "models/generator.py"):
        if change:
            (code / change).write_text("# other code\n")
        first = 2 if change == "scoring/geneval.py" else 0  # which has no part in images
        drawn.clear()
        with pytest.raises(KeyboardInterrupt):
            run(workspace)
        assert drawn[0].start == 4 * first, change


def test_the_manifest_tells_what_the_images_are(workspace):
    directory = run(workspace, save_size=9, classes="random")
    manifest = read_json(directory / "manifest.json")
    assert manifest["shape"] == list(np.load(directory / "images.npy").shape) == [11, 9, 9, 3]
    assert (manifest["generated_size"], manifest["classes"], manifest["run"]) == (12, "random", "abc")


def test_images_are_resized_as_the_official_sampler_does():
    generator, tokenizer = tiny_generator(), tiny_tokenizer(levels=3)
    arguments = (Sampler(generator, SamplingConfig()), tokenizer, torch.arange(4), range(4), 0)
    small, large = draw_images(*arguments, 9), draw_images(*arguments, 12)
    tokens = generate(
        generator, torch.arange(4), sample.sampling_uniforms(0, range(4), generator.config.length), SamplingConfig()
    )
    with torch.inference_mode():
        pixels = F.interpolate(tokenizer.decode(tokens), size=(9, 9), mode="bicubic")
        official = torch.clamp(127.5 * pixels + 128.0, 0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert large.shape == (4, 12, 12, 3)
    np.testing.assert_array_equal(small, official)
