"""An image set as the stage `sample` draws it: guided, compiled, as many at once as fit, decoded and resized."""

import time

import numpy as np
import torch

from benchmarks.gpu.process import Pieces
from benchmarks.gpu.shapes import Asked
from benchmarks.models import CLASSES, build_generator, build_tokenizer
from vapi_core.memory import free_bytes
from vapi_core.sampling.drawing import choose_classes, draw_images
from vapi_core.sampling.sampler import Sampler, SamplingConfig, batch_in_memory

COUNT, QUICK_COUNT = 1000, 12
PROTOCOL = 50_000  # images of a set in the paper


def measure(profile: str, asked: Asked) -> Pieces:
    sample = asked.profile(profile)["sample"]
    s = asked.setting(profile, "sample")
    count = QUICK_COUNT if asked.quick else COUNT
    generator, tokenizer = build_generator(s).to(s.dtype), build_tokenizer(s)
    classes = choose_classes(count, CLASSES, sample["classes"], sample["seed"])
    batch = sample["batch_size"] or batch_in_memory(free_bytes(s.device), generator, tokenizer, guided=True)
    yield {"setting": s.describe() | {"guidance_scale": s.guidance_scale}, "images": count, "batch": batch}
    sampler = Sampler(generator, SamplingConfig(guidance_scale=s.guidance_scale), compiled=True)
    images, ends = [], [time.perf_counter()]
    for start in range(0, count, batch):
        part = range(start, min(start + batch, count))
        condition = torch.from_numpy(classes[part.start : part.stop]).to(s.device)
        images.append(draw_images(sampler, tokenizer, condition, part, sample["seed"], sample["save_size"]))
        ends.append(time.perf_counter())
        yield {"drawn": part.stop, "seconds": ends[-1] - ends[0], "first_batch_seconds": ends[1] - ends[0]}
    drawn = np.concatenate(images)
    results = {"distinct_images": len({image.tobytes() for image in drawn}), "images_shape": list(drawn.shape)}
    if len(ends) > 2:  # without the first batch, in which the step is compiled
        rate = (count - len(images[0])) / (ends[-1] - ends[1])
        results |= {"images_per_second": rate, "minutes_of_50000": PROTOCOL / rate / 60}
    yield results
