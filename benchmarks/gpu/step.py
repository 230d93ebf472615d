"""One alignment step of a full-size model: ours beside the authors' schedule, in eager mode, then compiled.

How many images ours takes at once, and how many repeated contexts the authors' schedule, is found by trying: the
largest numbers that memory holds. Both are then timed on equal images. Compiled, both run the same compiled policy.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.align import Sides, check
from benchmarks.gpu.process import Pieces
from benchmarks.gpu.shapes import Asked, fits, halves, held_bytes, largest
from benchmarks.measure import Results, matmul_rate, pairs, run
from vapi_core.training.loop import MicroBatch

COUNT, QUICK_COUNT = 3, 1  # pairs
MORE = 4  # times the profile's micro-batch is the most that is tried


class Trial(Sides):
    """Both sides of a step whose number of images is still to be found."""

    def fits(self, gradient: Callable[[], None], images: int, contexts_at_a_time: int | None = None) -> bool:
        """Whether memory holds a step of so many images; if it does, they are what is measured from now on."""
        self.batch, self.contexts_at_a_time = MicroBatch(0, 0, np.arange(images)), contexts_at_a_time
        self.optimizer.zero_grad(set_to_none=True)  # of a step that did not fit
        return fits(lambda: self.step(gradient))

    def fit_ours(self, most: int) -> int:
        """The largest number of images that ours takes at once."""
        images = largest(most, lambda n: self.fits(self.ours, n))
        if images is None:
            raise torch.OutOfMemoryError("memory does not hold our step of one image")
        return images

    def fit_authors(self, most: int) -> tuple[int, int]:
        """The largest number of images whose authors' schedule fits, and of its contexts at a time."""
        for images in halves(most):
            rows = images * self.setting.method.group_size
            if contexts := largest(rows, lambda n, images=images: self.fits(self.authors, images, n)):  # type: ignore[misc]
                return images, contexts
        raise torch.OutOfMemoryError("memory does not hold the authors' step of one image")


def measure(profile: str, asked: Asked) -> Pieces:
    own = asked.setting(profile, "align")
    count = QUICK_COUNT if asked.quick else COUNT
    sides = Trial(replace(own, images=MORE * own.images), None, "adamw")
    yield {"setting": own.describe(), "held_bytes": held_bytes(own.device)}
    most = sides.fit_ours(MORE * own.images)
    alone = min(run(lambda: sides.step(sides.ours), own.device).seconds for _ in range(count))
    yield {"largest_micro_batch": most, "seconds_an_image": alone / most}
    images, contexts = sides.fit_authors(min(most, own.images))
    yield {"images": images, "authors_contexts_at_a_time": contexts}
    found = check(sides)
    rate = matmul_rate(own.device, own.dtype)
    yield found | {"matmul_flops_per_second": rate}

    def both() -> Results:
        results = pairs(lambda: sides.step(sides.ours), lambda: sides.step(sides.authors), own.device, count)
        medians = results["median_seconds"].items()
        return results | {
            "images_per_second": {side: images / seconds for side, seconds in medians},
            "share_of_matmul_rate": {side: found["flops"][side] / seconds / rate for side, seconds in medians},
        }

    yield {"eager": both()}
    sides.generator.compile()
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):  # kernels for every shape, on both sides
        first = run(lambda: sides.step(sides.ours), own.device).seconds
        sides.step(sides.authors)
        yield {"compiled": both() | {"first_seconds": first}}
