"""The stage `align` on tiny models: what it keeps on its way, what a kill between its last steps costs, and how it fails."""

import argparse
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pipelines.config.params import check_params
from pipelines.config.paths import CLASSIFIERS, GENERATOR, SUBSET, TOKENIZER, TOKENS, WORK, after_steps, aligned
from vapi_core.training_state import states

from pipelines.frame import stage as frame
from pipelines.frame.stage import Stage, UntrackedRun
from pipelines.stages import align, tokenize
from tests.tiny import tiny_generator, tiny_tokenizer
from vapi_core.data.sources import ImageSource
from vapi_core.data.subset import plan_subset, write_subset
from vapi_core.errors import FileError, TrainingError, VapiError
from vapi_core.files import sha256_file, write_json
from vapi_core.models.checkpoints import load_model, save_model

PROFILE = Path("profiles/mnist.yaml").absolute()
GIVEN = argparse.Namespace(method="cross-entropy", seed=0)


@pytest.fixture
def params(tmp_path, monkeypatch):
    """A checkout in which everything before `align` is done: ten images of 12 pixels, five classes."""
    content = yaml.safe_load(PROFILE.read_text(encoding="utf-8"))
    content["subset"] |= {"image_size": 16}
    content["align"] |= {"steps": 6, "checkpoint_every": 2, "keep_every": 2, "batch_size": 4, "micro_batch_size": None}
    monkeypatch.chdir(tmp_path)
    params = check_params(content)
    source = ImageSource(
        "tiny",
        12,
        tuple("abcde"),
        tuple(map(str, range(10))),
        np.arange(10) % 5,
        lambda i: np.full((12, 12, 3), 20 * i, "u1"),
    )
    write_subset(source, plan_subset(source.labels, source.classes, {"train": 10}, 0), SUBSET)
    save_model(TOKENIZER, "tokenizer", tiny_tokenizer(levels=3))
    save_model(GENERATOR, "generator", tiny_generator())
    monkeypatch.setattr(tokenize, "grid_side", lambda params: 3)
    tokenize.work(stage_of(params, "tokenize"), argparse.Namespace())
    for folder in (SUBSET, TOKENIZER, TOKENS, GENERATOR, CLASSIFIERS / "reward"):
        write_json(folder / "run.json", {"key": folder.name})
    return params


def stage_of(params, name="align") -> Stage:
    plan = align.plan(params, GIVEN) if name == "align" else tokenize.plan(params, None)
    return Stage(plan, params, torch.device("cpu"), UntrackedRun(), "key")


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*.safetensors"))}


def test_weights_are_kept_on_the_way_in_the_output(params):
    align.work(stage_of(params), GIVEN)
    output = aligned("cross-entropy", 0)
    assert hashes(output).keys() == {
        "generator.safetensors",
        "steps/2/generator.safetensors",
        "steps/4/generator.safetensors",
    }
    assert len(set(hashes(output).values())) == 3
    load_model(after_steps("cross-entropy", 0, 2), "generator")


def test_a_kill_after_the_output_and_before_the_checkpoint_is_removed_is_made_good(params, monkeypatch):
    """DVC empties the output before it runs the stage again, which then goes on from the last checkpoint."""
    stage = stage_of(params)
    align.work(stage, GIVEN)
    whole = hashes(stage.output)
    assert states(stage.checkpoint) == {2, 4}
    steps: list[int] = []

    class Watched(align.CrossEntropy):
        def __call__(self, slots):
            steps.append(slots.step)
            return super().__call__(slots)

    monkeypatch.setattr(align, "CrossEntropy", Watched)
    for _ in range(2):  # as often as it is killed
        shutil.rmtree("data/aligned")
        align.work(stage, GIVEN)
        assert hashes(stage.output) == whole
    assert steps == 2 * [0, 4, 5]  # the operations of an image are counted first


def test_kept_weights_that_somebody_removed_are_named_with_what_to_do(params):
    stage = stage_of(params)
    align.work(stage, GIVEN)
    shutil.rmtree(stage.checkpoint / "kept" / "2")
    with pytest.raises(FileError, match=rf"kept/2: .*are gone. Remove {stage.checkpoint}"):
        align.work(stage, GIVEN)
    shutil.rmtree(stage.checkpoint)
    align.work(stage, GIVEN)


def executed(params, monkeypatch, work=align.work) -> None:
    """The stage in its frame, without tracking."""
    monkeypatch.setattr(frame, "_tracked_run", lambda *arguments: nullcontext(Journalled()))
    monkeypatch.setattr(frame, "_prepare_torch", lambda params: torch.device("cpu"))
    frame._execute(align.plan(params, GIVEN), "key", work, params, GIVEN)


class Journalled:
    """A run that nobody reads; not one of those that only processes other than the main one have."""

    def log(self, metrics, step=0):
        pass

    def made(self, outputs):
        pass


def test_when_the_stage_has_ended_nothing_is_left_in_the_work_folder(params, monkeypatch):
    left = WORK / "checkpoints" / "align@va-pi-0-k" / ".50.99999999.tmp"  # no process has this number
    left.mkdir(parents=True)
    executed(params, monkeypatch)
    assert aligned("cross-entropy", 0).joinpath("run.json").is_file()
    assert [path.name for path in (WORK / "checkpoints").iterdir()] == ["align@va-pi-0-k"]
    assert not left.exists()


def test_a_training_that_leaves_the_range_of_numbers_leaves_no_output(params, monkeypatch):
    steep = params.model_copy(update={"align": params.align.model_copy(update={"learning_rate": 1e30})})
    with pytest.raises(TrainingError, match="training stopped at step"):
        executed(steep, monkeypatch)
    assert not aligned("cross-entropy", 0).exists() and not Path("reports/curves").exists()


def test_a_stage_that_runs_out_of_memory_says_what_to_lower(params, monkeypatch):
    def work(stage, arguments):
        torch.empty(2**50)

    with pytest.raises(VapiError, match=r"align@cross-entropy-0: out of memory .*micro_batch_size: 2 \(now null"):
        executed(params, monkeypatch, work)
