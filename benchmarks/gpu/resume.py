"""A training of a full-size model that is killed by SIGKILL and goes on from its checkpoint, beside one that is not.

Two of its own states, 12 bytes a parameter each, lie on the disk at once, and a third for a moment.
"""

import os
import shutil
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.align import SEED, watched
from benchmarks.gpu.process import Pieces, Skipped, run_apart
from benchmarks.gpu.shapes import Asked
from benchmarks.measure import Results
from benchmarks.models import build_data, build_generator, build_perceptual, build_tokenizer, count_parameters
from vapi_core.alignment.reward import ReconstructionReward
from vapi_core.alignment.va_pi import VaPi
from vapi_core.files import read_json, write_json
from vapi_core.models.llamagen.generator import Generator
from vapi_core.training.loop import OptimizationConfig, autocast, train

STEPS, CHECKPOINT, KILLED = 4, 2, 3  # steps in all, before the checkpoint, and after which the process is killed
IMAGES = 4  # of a step
STATES, BYTES = 3, 12  # on the disk at once at most; of a parameter in one


def measure(profile: str, asked: Asked) -> Pieces:
    s = asked.setting(profile, "align")
    needed = STATES * BYTES * count_parameters(s.generator)
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        if (free := shutil.disk_usage(folder).free) < needed:
            raise Skipped(f"the states need {needed / 1e9:.0f} GB of disk, and {free / 1e9:.0f} GB are free")
        yield {"setting": s.describe() | {"images": IMAGES}, "state_bytes": needed // STATES}
        code = run_apart(align, profile, asked, folder / "killed", True)
        if code != -signal.SIGKILL:
            raise RuntimeError(f"the process that was to be killed ended with code {code}")
        yield {"killed_after_steps": KILLED, "states": sorted(p.name for p in (folder / "killed/states").iterdir())}
        for run in ("killed", "whole"):
            if code := run_apart(align, profile, asked, folder / run, False):
                raise RuntimeError(f"the {run} training ended with code {code}")
        yield compare(folder)


def align(profile: str, asked: Asked, folder: Path, kill: bool) -> None:
    """Trains from what is in `folder` to the end, or until it kills itself."""
    torch.set_num_threads(1)
    s = replace(asked.setting(profile, "align"), images=IMAGES)
    generator, tokenizer = build_generator(s), build_tokenizer(s)
    reward = ReconstructionReward(tokenizer, s.method.reward, build_perceptual(s))
    objective = autocast(VaPi(generator, reward, build_data(s, tokenizer), s.method, SEED), s.device, s.dtype)
    config = OptimizationConfig(
        learning_rate=1e-5, steps=STEPS, batch_size=IMAGES, micro_batch_size=1, checkpoint_every=CHECKPOINT
    )
    before, rows, ends = weights_of(generator), [], [time.perf_counter()]

    def log(step: int, row: dict[str, float]) -> None:
        rows.append(row)
        ends.append(time.perf_counter())
        if kill and step + 1 == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)

    states = folder / "states"
    train(generator, objective, config, count=IMAGES, seed=SEED, log=log, checkpoint=states, fingerprint="benchmark")
    torch.save((before, weights_of(generator)), folder / "weights.pt")
    seconds = [after - before for before, after in zip(ends, ends[1:], strict=False)]
    write_json(folder / "training.json", {"rows": rows, "seconds": seconds})


def weights_of(generator: Generator) -> Tensor:
    """Weights of the first and the last layers, on the CPU."""
    return torch.cat([p.detach().flatten().cpu() for p in watched(generator)])


def compare(folder: Path) -> Results:
    """How far the resumed training is from the whole one: on a GPU sums may be in another order from run to run."""
    killed, whole = (read_json(folder / name / "training.json") for name in ("killed", "whole"))
    (before, resumed), (_, expected) = (torch.load(folder / name / "weights.pt") for name in ("killed", "whole"))
    return {
        "steps_done_again": KILLED - CHECKPOINT,
        "equal_metrics": killed["rows"] == whole["rows"],
        "equal_weights": torch.equal(resumed, expected),
        "weights_difference": ((resumed - expected).norm() / (expected - before).norm()).item(),
        "seconds_to_read_a_state": killed["seconds"][0],
        "seconds_to_write_a_state": whole["seconds"][CHECKPOINT] - whole["seconds"][-1],
    }
