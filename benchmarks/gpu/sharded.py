"""`launch.strategy: fsdp` on all GPUs, beside one process with the whole model: same steps, less memory."""

import time
from dataclasses import replace

import torch

from benchmarks.align import SEED
from benchmarks.gpu.process import Pieces, run_group
from benchmarks.gpu.shapes import Asked
from benchmarks.measure import Results, run
from benchmarks.models import build_data, build_generator, build_perceptual, build_tokenizer
from vapi_core import distributed
from vapi_core.alignment.reward import ReconstructionReward
from vapi_core.alignment.va_pi import VaPi
from vapi_core.training.loop import OptimizationConfig, autocast, train

STEPS, IMAGES_OF_A_PROCESS, QUICK_PROCESSES = 3, 4, 2


def measure(profile: str, asked: Asked) -> Pieces:
    processes = torch.cuda.device_count() or QUICK_PROCESSES
    images = processes * IMAGES_OF_A_PROCESS
    yield {"setting": asked.setting(profile, "align").describe() | {"images": images}, "processes": processes}
    (whole,) = run_group(1, align, profile, asked, images, False)
    yield {"one_process": whole}
    sharded = run_group(processes, align, profile, asked, images, True)
    peaks = [one["peak_bytes"] for one in sharded]
    yield {"fsdp": sharded[0] | {"peak_bytes": None if None in peaks else max(peaks)}}
    pairs = zip(whole["rows"], sharded[0]["rows"], strict=True)
    yield {"largest_difference": max(relative(a[name], b[name]) for a, b in pairs for name in ("ce", "gradient_norm"))}


def relative(a: float, b: float) -> float:
    return abs(a - b) / abs(a)


def align(device: torch.device, profile: str, asked: Asked, images: int, sharded: bool) -> Results:
    """Some steps of a training on this process of the group: metrics, seconds and peak memory, weights and all."""
    torch.set_num_threads(1)
    s = replace(asked.setting(profile, "align"), images=images, device=device)
    generator = build_generator(replace(s, device=torch.device("cpu")) if sharded else s)
    if sharded:
        distributed.shard_weights(generator, device, s.dtype)
    tokenizer = build_tokenizer(s)
    reward = ReconstructionReward(tokenizer, s.method.reward, build_perceptual(s))
    objective = autocast(VaPi(generator, reward, build_data(s, tokenizer), s.method, SEED), device, s.dtype)
    config = OptimizationConfig(
        learning_rate=1e-6, steps=STEPS, batch_size=images, micro_batch_size=IMAGES_OF_A_PROCESS
    )
    rows: list[dict[str, float]] = []
    ends = [time.perf_counter()]

    def log(step: int, row: dict[str, float]) -> None:
        rows.append(row)
        ends.append(time.perf_counter())

    held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    peak = run(lambda: train(generator, objective, config, count=images, seed=SEED, log=log), device).peak_bytes
    return {
        "rows": rows,
        "step_seconds": [after - before for before, after in zip(ends[1:], ends[2:], strict=False)],
        "peak_bytes": None if peak is None else held + peak,
    }
