"""What an alignment draws as it goes: the same images by the base and by the weights as they are, side by side.

Which images these are and the numbers that they are drawn from have streams of their own, the same for every variant
and seed, so that pictures of several runs can be compared, and a training is the same with and without them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.frame.grids import enlarged_tile
from pipelines.frame.stage import Stage, StageRun, UntrackedRun
from pipelines.tracking.runs import PREVIEW
from pipelines.variants.drawing import choose_labels, open_conditions
from vapi_core import distributed
from vapi_core.data.batches import batch_conditions
from vapi_core.files import atomic_path
from vapi_core.models.llamagen.tokenizer import Tokenizer
from vapi_core.models.policy import Policy
from vapi_core.randomness import derive_seed
from vapi_core.sampling.drawing import draw_images
from vapi_core.sampling.sampler import Sampler, SamplingConfig

COUNT, COLUMNS = 20, 5  # images of each side
GAP = 8  # pixels between the two sides


@dataclass(frozen=True)
class Previews:
    """Draws every so many steps; for the main process. A picture that an attempt before this one drew is told again."""

    stage: Stage
    run: StageRun | UntrackedRun
    folder: Path  # of the pictures, STEP.png; goes with the checkpoints of the training
    base: Path  # .npy of the base's images, which all seeds share
    every: int  # steps; 0: never
    generator: Policy
    tokenizer: Tokenizer
    config: SamplingConfig
    batch_size: int

    def begin(self) -> None:
        """Draws the base; before the first step."""
        if self.every == 0 or not distributed.is_main():
            return
        for path in sorted(self.folder.glob("*.png"), key=lambda path: int(path.stem)):
            self.run.image(PREVIEW, path, int(path.stem))
        if not self.base.is_file():
            with atomic_path(self.base) as temporary, temporary.open("wb") as file:
                np.save(file, self._draw())

    def after(self, steps: int) -> None:
        """Draws, if it is time, and reports the picture."""
        path = self.folder / f"{steps}.png"
        if self.every == 0 or steps % self.every or path.is_file() or not distributed.is_main():
            return
        base, now = (enlarged_tile(images, COLUMNS) for images in (np.load(self.base), self._draw()))
        gap = np.full((base.shape[0], GAP, 3), 255, np.uint8)
        with atomic_path(path) as temporary:
            Image.fromarray(np.concatenate([base, gap, now], axis=1)).save(temporary, format="PNG")
        self.run.image(PREVIEW, path, steps)

    def _draw(self) -> np.ndarray:
        """Images uint8 [COUNT, S, S, 3] by the models as they are, which are left as they were."""
        params = self.stage.params
        seed = derive_seed(params.sample.seed, "preview")
        labels = choose_labels(params, seed)
        labels = labels[np.linspace(0, len(labels) - 1, COUNT).astype(int)] if params.task == "t2i" else labels[:COUNT]
        conditions, sampler = open_conditions(params, labels), Sampler(self.generator, self.config)
        modes = [(model, model.training) for model in (self.generator, self.tokenizer)]
        for model, _ in modes:
            model.eval()
        parts = []
        for start in range(0, len(labels), self.batch_size):
            items = np.arange(start, min(start + self.batch_size, len(labels)))
            condition = batch_conditions(conditions, items, self.stage.device)
            parts.append(draw_images(sampler, self.tokenizer, condition, items, seed, params.subset.image_size))
        for model, training in modes:
            model.train(training)
        return np.concatenate(parts)
