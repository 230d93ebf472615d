"""Image sets of a variant: a stage that was killed goes on from what it has, and from nothing else."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.config.loading import check_params
from pipelines.config.paths import ALIGNED, GENERATOR, OWN_WORK, SAMPLES
from pipelines.config.variant import find_variant
from pipelines.frame.inputs import open_samples
from pipelines.stages import sample
from pipelines.variants import drawing
from tests.damage import check_every_flip_is_named
from tests.pipelines.variants.workplace import fill, tiny_content
from tests.pipelines.variants.workplace import run as run_stage
from vapi_core import fingerprint
from vapi_core.errors import FileError
from vapi_core.files import read_json
from vapi_core.sampling.drawing import draw_images

STAGE = OWN_WORK / "samples" / "sample-control@base"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder in which everything before `sample` is done; returns the params' content."""
    monkeypatch.chdir(tmp_path)
    content = tiny_content()
    fill(check_params(content))
    return content


def run(content, **changes) -> Path:
    """Draws the base's two sets; returns the first one's directory."""
    content = content | {"sample": content["sample"] | changes}
    if "temperature" in changes:
        content["controls"] = {"base": {"table": "experiment", "temperatures": [changes["temperature"]]}}
    params = check_params(content)
    run_stage(sample, params, "base")
    return find_variant(params, "base").sets[0].directory


def test_a_killed_stage_goes_on_from_the_images_it_has_whatever_the_batch_size(workspace, monkeypatch):
    whole = np.load(run(workspace) / "images.npy")
    shutil.rmtree("data/samples")

    drawn = []

    def draw_and_die(sampler, tokenizer, class_ids, indices, *rest):
        if len(drawn) == 4:  # the first set is whole, of the second one batch is there
            raise KeyboardInterrupt
        drawn.append(indices)
        return draw_images(sampler, tokenizer, class_ids, indices, *rest)

    monkeypatch.setattr(drawing, "draw_images", draw_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(workspace)
    shutil.rmtree("data/samples", ignore_errors=True)  # as DVC does before it runs a stage again

    drawn.clear()
    directory = run(workspace, batch_size=3)
    assert drawn == [range(4, 7), range(7, 10), range(10, 11)]
    np.testing.assert_array_equal(np.load(directory / "images.npy"), whole)
    assert not any(STAGE.iterdir())


def test_images_that_are_damaged_before_a_set_is_whole_are_drawn_anew_and_they_alone(workspace, monkeypatch):
    whole = np.load(run(workspace) / "images.npy")
    shutil.rmtree("data/samples")
    drawn = []

    def draw_and_die(sampler, tokenizer, class_ids, indices, *rest):
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(indices)
        return draw_images(sampler, tokenizer, class_ids, indices, *rest)

    monkeypatch.setattr(drawing, "draw_images", draw_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(workspace)
    first = next(d for d in STAGE.iterdir() if len(list((d / "done").iterdir())) == 3)
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

    monkeypatch.setattr(drawing, "draw_images", draw)
    directory = run(workspace, batch_size=None)
    assert set(drawn) == {11}
    np.testing.assert_array_equal(np.load(directory / "images.npy"), whole)


def test_images_of_other_settings_are_not_gone_on_with(workspace, monkeypatch):
    def die(*arguments):
        raise KeyboardInterrupt

    run(workspace)
    monkeypatch.setattr(drawing, "draw_images", die)
    for change in ({"temperature": 0.5}, {"seed": 3}, {"classes": "random"}, {"save_size": 9}):
        with pytest.raises(KeyboardInterrupt):
            run(workspace, **change)
    assert len(list(STAGE.iterdir())) == 2  # of the last change alone


def test_images_that_other_code_has_drawn_are_not_gone_on_with(workspace, monkeypatch, tmp_path):
    code = shutil.copytree(fingerprint.CODE, tmp_path / "code", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "CODE", code)
    drawn = []

    def draw_and_die(sampler, tokenizer, class_ids, indices, *rest):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(indices)
        return draw_images(sampler, tokenizer, class_ids, indices, *rest)

    monkeypatch.setattr(drawing, "draw_images", draw_and_die)
    for change in ("", "scoring/geneval/rules.py", "sampling/sampler.py", "models/llamagen/generator.py"):
        if change:
            (code / change).write_text("# other code\n")
        first = 2 if change == "scoring/geneval/rules.py" else 0  # which has no part in images
        drawn.clear()
        with pytest.raises(KeyboardInterrupt):
            run(workspace)
        assert drawn[0].start == 4 * first, change


def test_the_manifest_tells_what_the_images_are(workspace):
    directory = run(workspace, save_size=9, classes="random")
    manifest = read_json(directory / "manifest.json")
    assert manifest["shape"] == list(np.load(directory / "images.npy").shape) == [11, 9, 9, 3]
    assert (manifest["generated_size"], manifest["classes"], manifest["run"]) == (12, "random", "generator")


@pytest.fixture
def aligned(workspace):
    """The workspace with an alignment that has changed nothing: its weights are the base's."""
    for folder in ("0", "0/steps/2", "0/steps/4"):
        shutil.copytree(GENERATOR, ALIGNED / "va-pi" / folder, dirs_exist_ok=True)
    return workspace


def test_every_variant_draws_image_i_from_the_stream_of_its_seed(aligned):
    base = run(aligned)
    run_stage(sample, check_params(aligned), "va-pi")
    assert {path.name for path in (SAMPLES / "experiment/va-pi").iterdir()} == {
        "t1.0-g1.0-0",
        "t1.0-g2.0-0",
        "after-2-t1.0-g1.0-0",
        "after-4-t1.0-g1.0-0",
    }
    for name in ("t1.0-g1.0-0", "after-2-t1.0-g1.0-0"):
        images = np.load(SAMPLES / "experiment/va-pi" / name / "images.npy")
        np.testing.assert_array_equal(images, np.load(base / "images.npy"))
    assert read_json(SAMPLES / "experiment/va-pi/after-2-t1.0-g1.0-0/manifest.json")["steps"] == 2


def test_an_alignment_without_its_kept_weights_is_named_with_the_command_that_makes_it(aligned):
    shutil.rmtree(ALIGNED / "va-pi/0/steps/4")
    with pytest.raises(FileError, match=r"steps/4/generator\.json: the file is missing.*`dvc repro align@va-pi`"):
        run_stage(sample, check_params(aligned), "va-pi")


def test_a_kill_while_sets_are_written_costs_no_more_than_those_that_are(workspace, monkeypatch):
    """What is written is in the output, which DVC empties; the rest still grows in the work folder."""
    whole = np.load(run(workspace).with_name("t1.0-g2.0-0") / "images.npy")
    shutil.rmtree("data/samples")
    write, drawn = drawing.write_set, []

    def write_and_die(image_set, *rest):
        write(image_set, *rest)
        raise KeyboardInterrupt

    def draw(sampler, tokenizer, class_ids, indices, *rest):
        drawn.append((sampler.config.guidance_scale, len(indices)))
        return draw_images(sampler, tokenizer, class_ids, indices, *rest)

    monkeypatch.setattr(drawing, "write_set", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(workspace)
    shutil.rmtree("data/samples")
    monkeypatch.setattr(drawing, "write_set", write)
    monkeypatch.setattr(drawing, "draw_images", draw)
    directory = run(workspace).with_name("t1.0-g2.0-0")
    assert drawn == [(1.0, 4), (1.0, 4), (1.0, 3)]
    np.testing.assert_array_equal(np.load(directory / "images.npy"), whole)
