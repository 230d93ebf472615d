"""The paper's recipe by measured steps: whole steps of the training loop, of as many images as the profile says.

The KL to the base is not logged here, so no base model is held.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.align import SEED
from benchmarks.gpu.process import Pieces
from benchmarks.gpu.shapes import Asked, fits, held_bytes, largest
from benchmarks.measure import Results, run
from benchmarks.models import build_data, build_generator, build_perceptual, build_tokenizer
from vapi_core.alignment.reward import ReconstructionReward
from vapi_core.alignment.va_pi import VaPi
from vapi_core.training.loop import OptimizationConfig, autocast, train

STEPS = 3  # beside the first, in which libraries choose and allocate
MORE = 4  # times the profile's micro-batch is the most that is tried


def measure(profile: str, asked: Asked) -> Pieces:
    align = asked.profile(profile)["align"]
    batch, steps = align["batch_size"], align["steps"]
    s = replace(asked.setting(profile, "align"), images=batch)
    generator, tokenizer = build_generator(s), build_tokenizer(s)
    reward = ReconstructionReward(tokenizer, s.method.reward, build_perceptual(s))
    data = build_data(s, tokenizer)
    objective = autocast(VaPi(generator, reward, data, s.method, SEED), s.device, s.dtype)

    def times(steps: int, images: int, micro: int) -> list[float]:
        """Seconds of each step."""
        ends = [time.perf_counter()]
        config = OptimizationConfig(learning_rate=1e-6, steps=steps, batch_size=images, micro_batch_size=micro)
        train(generator, objective, config, count=batch, seed=SEED, log=lambda *_: ends.append(time.perf_counter()))
        return [after - before for before, after in zip(ends, ends[1:], strict=False)]

    yield {"setting": s.describe(), "held_bytes": held_bytes(s.device)}
    micro = largest(min(batch, MORE * align["micro_batch_size"]), lambda n: fits(lambda: times(1, n, n)))
    if micro is None:
        raise torch.OutOfMemoryError("memory does not hold a step of one image")
    yield {"images": batch, "steps": steps, "micro_batch": micro}
    yield {"eager": whole_steps(lambda: times(1 + STEPS, batch, micro), steps, s.device)}
    generator.compile()
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        yield {"compiled": whole_steps(lambda: times(1 + STEPS, batch, micro), steps, s.device)}


def whole_steps(times: Callable[[], list[float]], steps: int, device: torch.device) -> Results:
    """The times of some steps, their peak memory, and the minutes of all."""
    seconds: list[float] = []
    peak = run(lambda: seconds.extend(times()), device).peak_bytes
    median = statistics.median(seconds[1:])
    minutes = (seconds[0] + median * (steps - 1)) / 60
    return {"first_seconds": seconds[0], "step_seconds": seconds[1:], "minutes": minutes, "peak_bytes": peak}
