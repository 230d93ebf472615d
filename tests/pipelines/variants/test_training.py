"""The stage `align` on tiny models: one run a seed, what a kill costs wherever it strikes, and how it fails."""

import argparse
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipelines.config.loading import check_params
from pipelines.config.paths import ALIGNED, CURVES, WORK
from pipelines.frame import stage as frame
from pipelines.stages import align
from pipelines.tracking.runs import StageRun
from pipelines.variants import previews, training
from pipelines.variants.training import FINISHED
from tests.pipelines.variants.workplace import fill, run, stage_of, tiny_content
from vapi_core.alignment.cross_entropy import CrossEntropy
from vapi_core.errors import FileError, ParameterError, TrainingError, VapiError
from vapi_core.files import read_json, sha256_file, write_json
from vapi_core.models.checkpoints import load_model
from vapi_core.training.states import states

NAME = "cross-entropy"
OUTPUT = ALIGNED / NAME


@pytest.fixture
def content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = tiny_content()
    content["align"]["seeds"] = [0, 1]
    fill(check_params(content))
    return content


@pytest.fixture
def params(content):
    return check_params(content)


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*.safetensors"))}


class Watch:
    """Notes which steps an objective is asked for, and dies in one of them if it is told to."""

    def __init__(self, monkeypatch):
        self.steps: list[int] = []
        self.dies_at: int | None = None  # after so many calls
        objective = CrossEntropy.__call__

        def watched(cross_entropy, batch):
            self.steps.append(batch.step)
            if len(self.steps) == self.dies_at:
                raise KeyboardInterrupt
            return objective(cross_entropy, batch)

        monkeypatch.setattr(CrossEntropy, "__call__", watched)


@pytest.fixture
def watch(monkeypatch):
    return Watch(monkeypatch)


def test_every_seed_has_its_weights_those_on_the_way_and_its_curves(params):
    run(align, params, NAME)
    assert {path.name for path in OUTPUT.iterdir()} == {"0", "1"}
    for seed in ("0", "1"):
        files = {str(path.relative_to(OUTPUT / seed)) for path in (OUTPUT / seed).rglob("*") if path.is_file()}
        kept = {f"steps/{steps}/generator.{kind}" for steps in (2, 4) for kind in ("json", "safetensors")}
        assert files == {"generator.json", "generator.safetensors", "run.json"} | kept
        curves = pd.read_csv(CURVES / NAME / f"{seed}.csv")
        assert list(curves["step"]) == [1, 2, 3, 4, 5, 6] and curves["loss"].notna().all()
    assert len(set(hashes(OUTPUT).values())) == 6
    load_model(OUTPUT / "0" / "steps" / "2", "generator")


def test_the_cost_of_a_variant_is_the_mean_over_its_seeds(params):
    stage = run(align, params, NAME)
    finished = [read_json(stage.checkpoint / "seeds" / seed / FINISHED)["metrics"] for seed in ("0", "1")]
    assert stage.metrics["flops_per_image"] == finished[0]["flops_per_image"] > 0
    mean = (finished[0]["images_per_second"] + finished[1]["images_per_second"]) / 2
    assert stage.metrics["images_per_second"] == pytest.approx(mean)


def test_seeds_differ_and_a_seed_is_the_same_beside_any_others(content, params):
    run(align, params, NAME)
    first, second = hashes(OUTPUT / "0"), hashes(OUTPUT / "1")
    assert first != second
    content["align"]["seeds"] = [1]
    shutil.rmtree(WORK)
    run(align, check_params(content), NAME)
    assert hashes(OUTPUT / "1") == second and not (OUTPUT / "0").exists()


def test_a_kill_between_seeds_costs_none_that_is_finished(params, watch):
    run(align, params, NAME)
    whole = hashes(OUTPUT)
    shutil.rmtree(ALIGNED), shutil.rmtree(WORK)
    watch.steps.clear()
    watch.dies_at = 13  # in step 4 of the second seed: each has seven calls, the first to count operations
    with pytest.raises(KeyboardInterrupt):
        run(align, params, NAME)
    assert not OUTPUT.exists()
    watch.steps.clear()
    watch.dies_at = None
    run(align, params, NAME)
    assert watch.steps == [0, 4, 5]  # the first seed is not trained again, the second goes on
    assert hashes(OUTPUT) == whole


def test_a_kill_after_the_output_and_before_the_checkpoint_is_removed_is_made_good(params, watch):
    """DVC empties the output before it runs the stage again, which has all seeds."""
    run(align, params, NAME)
    whole, curves = hashes(OUTPUT), (CURVES / NAME / "1.csv").read_text()
    for _ in range(2):  # as often as it is killed
        shutil.rmtree(ALIGNED), shutil.rmtree(CURVES)
        watch.steps.clear()
        run(align, params, NAME)
        assert watch.steps == [] and hashes(OUTPUT) == whole
        assert (CURVES / NAME / "1.csv").read_text() == curves


def test_a_kill_after_the_last_step_and_before_a_seed_is_finished_goes_on_from_its_checkpoint(params, watch):
    stage = run(align, params, NAME)
    whole, curves = hashes(OUTPUT), (CURVES / NAME / "0.csv").read_text()
    assert states(stage.checkpoint / "0") == {2, 4}
    (stage.checkpoint / "seeds/0" / FINISHED).unlink()
    shutil.rmtree(ALIGNED)
    watch.steps.clear()
    run(align, params, NAME)
    assert watch.steps == [0, 4, 5]
    assert hashes(OUTPUT) == whole and (CURVES / NAME / "0.csv").read_text() == curves


def test_finished_seeds_of_other_inputs_are_trained_again(params, watch):
    run(align, params, NAME)
    before = hashes(OUTPUT)
    write_json(Path("data/tokens/another.json"), {"sha256": "b"})  # what the stage builds on is another
    watch.steps.clear()
    run(align, params, NAME)
    assert watch.steps == 2 * [0, 0, 1, 2, 3, 4, 5] and hashes(OUTPUT) == before


def test_weights_that_are_kept_at_other_steps_are_another_training(content):
    before = stage_of(align, check_params(content), variant=NAME).plan
    content["align"]["keep_every"] = 3
    after = stage_of(align, check_params(content), variant=NAME).plan
    assert before.params != after.params  # and so are key and checkpoint
    content["align"]["keep_every"] = 2
    content["align"]["seeds"] = [0, 1, 2]
    assert stage_of(align, check_params(content), variant=NAME).plan.params == before.params  # finished seeds are kept


def test_a_variant_is_trained_by_its_own_number_of_threads_which_makes_another_training(content, monkeypatch):
    before, threads = stage_of(align, check_params(content), variant=NAME).plan, torch.get_num_threads()
    content["variants"][NAME]["align"] = {"threads": threads + 1}
    params, seen = check_params(content), set()
    objective = CrossEntropy.__call__

    def noted(cross_entropy, batch):
        seen.add(torch.get_num_threads())
        return objective(cross_entropy, batch)

    monkeypatch.setattr(CrossEntropy, "__call__", noted)
    try:
        run(align, params, NAME)
    finally:
        torch.set_num_threads(threads)
    assert seen == {threads + 1}
    assert stage_of(align, params, variant=NAME).plan.params != before.params


def test_kept_weights_that_somebody_removed_are_named_with_what_to_do(params):
    stage = run(align, params, NAME)
    (stage.checkpoint / "seeds/0" / FINISHED).unlink()
    shutil.rmtree(stage.checkpoint / "seeds/0/steps/2")
    with pytest.raises(FileError, match=rf"steps/2: .*are gone. Remove {stage.checkpoint}"):
        run(align, params, NAME)
    shutil.rmtree(stage.checkpoint)
    run(align, params, NAME)


def test_a_post_trained_tokenizer_is_the_output_of_its_variant(params):
    run(align, params, "tokenizer-post-training")
    assert set(hashes(ALIGNED / "tokenizer-post-training/1")) == {
        "tokenizer.safetensors",
        "steps/2/tokenizer.safetensors",
        "steps/4/tokenizer.safetensors",
    }


def test_a_training_shows_what_it_draws_beside_the_base_and_is_the_same_without(content, watch, monkeypatch):
    shown = []
    monkeypatch.setattr(StageRun, "image", lambda run, name, path, step: shown.append((step, read_image(path))))
    content["align"] |= {"seeds": [0], "images_every": 3}
    run(align, check_params(content), NAME)
    with_pictures, pictures = hashes(OUTPUT), dict(shown)
    assert [step for step, _ in shown] == [3, 6] and np.array_equal(side(pictures[3], 0), side(pictures[6], 0))
    assert not np.array_equal(side(pictures[3], 1), side(pictures[6], 1))
    shutil.rmtree(WORK)
    shown.clear(), watch.steps.clear()
    watch.dies_at = 7  # in step 5, with the picture of step 3 drawn and the checkpoint of step 4
    with pytest.raises(KeyboardInterrupt):
        run(align, check_params(content), NAME)
    watch.dies_at = None
    shown.clear()
    run(align, check_params(content), NAME)  # its run is a new one, which has all pictures, each once
    assert [step for step, _ in shown] == [3, 6] and all(np.array_equal(pictures[n], image) for n, image in shown)
    content["align"]["images_every"] = 0
    shutil.rmtree(WORK)
    shown.clear()
    run(align, check_params(content), NAME)
    assert shown == [] and hashes(OUTPUT) == with_pictures


def read_image(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def side(picture: np.ndarray, number: int) -> np.ndarray:
    """The base's half of a picture, 0, or that of the training, 1."""
    width = (picture.shape[1] - previews.GAP) // 2
    return picture[:, :width] if number == 0 else picture[:, -width:]


def test_a_control_is_not_aligned(params):
    with pytest.raises(ParameterError, match="'base' is a control"):
        stage_of(align, params, variant="base")


# In the frame of a stage


class Journalled:
    """A run that nobody reads; not one of those that only processes other than the main one have."""

    def log(self, metrics, step=0):
        pass

    def made(self, outputs):
        pass


def executed(params, monkeypatch, work=align.work) -> None:
    """The stage in its frame, without tracking."""
    given = argparse.Namespace(variant=NAME)
    monkeypatch.setattr(frame, "stage_run", lambda **options: nullcontext(Journalled()))
    monkeypatch.setattr(frame, "_prepare_torch", lambda params: torch.device("cpu"))
    frame._execute(align.plan(params, given), "key", work, params, given)


def test_when_the_stage_has_ended_nothing_is_left_in_the_work_folder(params, monkeypatch):
    left = WORK / "checkpoints" / "align@va-pi-k" / ".50.99999999.tmp"  # no process has this number
    left.mkdir(parents=True)
    executed(params, monkeypatch)
    assert OUTPUT.joinpath("run.json").is_file()
    assert [path.name for path in (WORK / "checkpoints").iterdir()] == ["align@va-pi-k"]
    assert not left.exists()


def test_every_seed_is_a_run_of_its_own_with_its_own_key(params, monkeypatch):
    begun = []

    def noted(**options):
        begun.append(options)
        return nullcontext(Journalled())

    executed(params, monkeypatch)
    monkeypatch.setattr(frame, "stage_run", noted)
    run(align, params, NAME)
    run(align, params, "va-pi")
    names = ["cross-entropy", "va-pi · ξ 0.5 · β 0.1 · ce · mse"]
    assert [r["name"] for r in begun] == [f"{name} · seed {seed}" for name in names for seed in (0, 1)]
    assert len({r["key"] for r in begun}) == 4
    assert {r["tags"]["variant"] for r in begun} == {"cross-entropy", "va-pi"}
    assert {(r["tags"]["stage"], r["tags"]["table"]) for r in begun} == {("align", "experiment")}
    assert begun[2]["params"]["terms"] == "mse" and "terms" not in begun[0]["params"]
    for number, seed in enumerate((0, 1)):
        told = read_json(OUTPUT / str(seed) / "run.json")
        assert told["key"] == begun[number]["key"]


def test_variants_with_equal_settings_have_runs_of_their_own(content, monkeypatch):
    begun = []

    def noted(**options):
        begun.append(options["key"])
        return nullcontext(Journalled())

    content["variants"]["twin"] = content["variants"][NAME] | {"table": "noise"}
    monkeypatch.setattr(frame, "stage_run", noted)
    for name in (NAME, "twin"):
        run(align, check_params(content), name)
    assert len(set(begun)) == 4
    assert hashes(OUTPUT) == hashes(ALIGNED / "twin")


def test_a_training_that_leaves_the_range_of_numbers_leaves_no_output(content, monkeypatch):
    content["align"]["learning_rate"] = 1e3
    content["align"]["gradient_norm"] = 1e6
    monkeypatch.setattr(training, "autocast", lambda objective, *rest: lambda batch: _endless(objective(batch)))
    with pytest.raises(TrainingError, match="training stopped at step"):
        executed(check_params(content), monkeypatch)
    assert not OUTPUT.exists() and not Path("reports/curves").exists()


def _endless(result):
    loss, means = result
    return loss * torch.inf, means


def test_a_stage_that_runs_out_of_memory_says_what_to_lower(params, monkeypatch):
    def work(stage, arguments):
        torch.empty(2**50)

    with pytest.raises(VapiError, match=r"align@cross-entropy: out of memory .*micro_batch_size: 2 \(now null"):
        executed(params, monkeypatch, work)
