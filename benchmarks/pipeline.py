"""The pipeline around the work: the start of stages that train nothing, and `dvc repro` where nothing has changed.

Needs the whole environment. There is no authors' side: they have no pipeline.
"""

import argparse
import statistics
import subprocess
import sys
import time

import torch

from benchmarks.measure import Results, machine

DVC = (sys.executable, "-m", "dvc")
STAGES = ("subset", "tokenize", "sample", "score", "report")
IMPORT = """
import sys, time
import torch
started = time.perf_counter()
import pipelines.stages.{stage}
print(time.perf_counter() - started)
"""


def start_up(stage: str, runs: int) -> list[float]:
    """Seconds that importing a stage takes beyond torch."""
    command = [sys.executable, "-c", IMPORT.format(stage=stage)]
    return [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(runs)]


def benchmark(options: argparse.Namespace) -> Results:
    """Medians of start-up; and of an unchanged `dvc repro report`, if it has been run before."""
    device = torch.device("cpu")
    runs = 1 if options.quick else options.pairs
    times = {stage: start_up(stage, runs) for stage in (STAGES[:1] if options.quick else STAGES)}
    results: Results = {
        "machine": machine(device),
        "start_up_seconds_beyond_torch": {stage: statistics.median(values) for stage, values in times.items()},
    }
    if options.quick:
        return results
    status = subprocess.run([*DVC, "status", "--quiet", "report"], check=False)
    if status.returncode == 0:
        results["unchanged_repro_seconds"] = statistics.median(timed_repro() for _ in range(runs))
    else:
        print("`dvc repro report` has something to do, so an unchanged one was not timed.", file=sys.stderr)
    return results


def timed_repro() -> float:
    started = time.perf_counter()
    subprocess.run([*DVC, "repro", "--quiet", "report"], check=True)
    return time.perf_counter() - started
