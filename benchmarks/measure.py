"""Time, memory, work and what the machine can do: everything that a benchmark measures."""

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vapi_core.memory import give_back_from

PAIRS = 5  # at least
GIVE_BACK, KEEP = 2**16, 2**25  # bytes from which glibc returns what is freed: nearly all, and little
PROCESS, CPU, LOAD = Path("/proc/self"), Path("/proc/cpuinfo"), Path("/proc/loadavg")
Results = dict[str, Any]
Work = Callable[[], Any]


@dataclass(frozen=True)
class Run:
    """One timed run."""

    seconds: float
    cpu_seconds: float  # of all threads: what other processes take from the cores is not in it
    peak_bytes: int | None  # above what was in use before: torch's on a GPU, the process's on Linux, else unknown


def run(work: Work, device: torch.device) -> Run:
    """Runs work once."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        before = _reset_peak()
    started, cpu_started = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elapsed, cpu_elapsed = time.perf_counter() - started, time.process_time() - cpu_started
    if device.type == "cuda":
        return Run(elapsed, cpu_elapsed, torch.cuda.max_memory_allocated(device) - before)
    return Run(elapsed, cpu_elapsed, None if before is None else _status("VmHWM") - before)


def peak(work: Work, device: torch.device) -> int | None:
    """Peak bytes of a run of its own, None where unknown or where a GPU's memory does not hold it.

    Left to itself glibc keeps holes of what was freed, more of them the longer a process runs: the peak of the same
    step was 70 or 120 MB. Here it gives back at once, in a thread that has an arena without old holes. That slows small
    models down, and what glibc did by itself does not come back: time first, then measure memory.
    """
    give_back_from(GIVE_BACK)
    try:
        with ThreadPoolExecutor(1) as fresh:
            return fresh.submit(run, work, device).result().peak_bytes
    except torch.OutOfMemoryError:
        return None
    finally:
        give_back_from(KEEP)


def _reset_peak() -> int | None:
    """Sets the process's peak to what is resident now, and returns that in bytes; None where the system cannot.

    What earlier runs have freed goes back to the system before: kept for reuse it would hide what the next run takes.
    """
    if not (PROCESS / "clear_refs").exists():
        return None
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc
        libc.malloc_trim(0)
    (PROCESS / "clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    line = next(line for line in (PROCESS / "status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def flops(work: Work) -> int:
    """Operations of matrix products, convolutions and attention of one run; a multiply-add is 2."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def in_turn(works: dict[str, Work], device: torch.device, count: int) -> dict[str, list[Run]]:
    """Runs all of the works in turn, `count` times, so that what disturbs the machine meets each of them."""
    rounds = [{name: run(work, device) for name, work in works.items()} for _ in range(count)]
    return {name: [one[name] for one in rounds] for name in works}


def pairs(ours: Work, authors: Work, device: torch.device, count: int) -> Results:
    """Runs both sides in turn `count` times: times, medians, the median ratio and its range; then once for the peaks.

    On a CPU the ratio of CPU seconds too, which says more than that of seconds where others use the cores.
    """
    sides = in_turn({"ours": ours, "authors": authors}, device, count)
    runs = list(zip(sides["ours"], sides["authors"], strict=True))
    ratios = [a.seconds / o.seconds for o, a in runs]
    results: Results = {
        "seconds": {name: [r.seconds for r in side] for name, side in sides.items()},
        "median_seconds": {name: statistics.median(r.seconds for r in side) for name, side in sides.items()},
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "peak_bytes": {"ours": peak(ours, device), "authors": peak(authors, device)},
    }
    if device.type == "cpu":
        ratios = [a.cpu_seconds / o.cpu_seconds for o, a in runs]
        results["median_cpu_seconds"] = {name: statistics.median(r.cpu_seconds for r in s) for name, s in sides.items()}
        results |= {"cpu_ratio": statistics.median(ratios), "cpu_ratio_range": [min(ratios), max(ratios)]}
    return results


def least_disturbed_ratio(results: Results) -> float:
    """Of `pairs`: of CPU seconds on a CPU, since what others take of the cores is no part of it; else of seconds."""
    return results.get("cpu_ratio", results["ratio"])


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a square matrix product, the best of five."""
    side = 8192 if device.type == "cuda" else 1024
    a, product = torch.randn(2, side, side, device=device, dtype=dtype)
    return 2 * side**3 / min(run(lambda: torch.mm(a, a, out=product), device).seconds for _ in range(5))


def memory_rate(device: torch.device) -> float:
    """Bytes a second at which a large tensor is read, the best of five."""
    x = torch.ones(2**30 if device.type == "cuda" else 2**25, device=device)
    return x.nbytes / min(run(lambda: x.sum(), device).seconds for _ in range(5))


def machine(device: torch.device) -> Results:
    """What the figures were measured on, and how busy it was."""
    facts: Results = {"torch": torch.__version__, "python": platform.python_version()}
    if device.type == "cuda":
        return facts | {"device": torch.cuda.get_device_name(device)}
    lines = CPU.read_text().splitlines() if CPU.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    facts |= {"device": names[0] if names else platform.processor(), "cores": os.cpu_count()}
    facts["threads"] = torch.get_num_threads()
    if LOAD.is_file():
        facts["load_average"] = float(LOAD.read_text().split()[0])
    return facts
