"""Stage `sample`: image sets from the base generator and its controls, or from all seeds of one alignment method.

Image i of a set is drawn from the stream (sampling seed, i), whatever the model, the temperature or the guidance: sets
of the same sampling seed differ in nothing else, so that their scores can be paired.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipelines.figures import save_grid
from pipelines.inputs import open_generator, open_tokenizer
from pipelines.params import Params, decimal
from pipelines.paths import GENERATOR, RUN_FILE, SAMPLES, SUBSET, TOKENIZER, aligned
from pipelines.progress import Advance, progress
from pipelines.stage import Stage, StagePlan, run_stage
from vapi_core.data.subset import Subset, array_writer
from vapi_core.files import atomic_path, read_json, write_json
from vapi_core.images import to_uint8
from vapi_core.models.checkpoints import model_hash
from vapi_core.models.generator import Generator
from vapi_core.models.tokenizer import Tokenizer
from vapi_core.randomness import stream
from vapi_core.sampling import SamplingConfig, generate, sampling_uniforms

BASE = "base"
GRID_IMAGES, GRID_COLUMNS = 100, 10


@dataclass(frozen=True)
class SampleSet:
    """One set of images: which generator, which stream, how drawn."""

    model: str  # "base", or the method that aligned it
    seed: int  # of the alignment, and of the sampling streams
    generator: Path
    config: SamplingConfig

    @property
    def directory(self) -> Path:
        setting = f"t{decimal(self.config.temperature)}-g{decimal(self.config.guidance_scale)}"
        return SAMPLES / self.model / f"{setting}-{self.seed}"


def plan_sets(params: Params, model: str) -> list[SampleSet]:
    """All sets of one model: every seed with every guidance scale; for the base, the control temperatures too."""
    s = params.sample
    settings = [s.config(s.temperature, scale) for scale in s.guidance_scales]
    if model == BASE:
        settings += [s.config(temperature, 1.0) for temperature in s.control_temperatures]
    return [
        SampleSet(model, seed, GENERATOR if model == BASE else aligned(model, seed), setting)
        for setting in settings
        for seed in params.align.seeds
    ]


def plan(params: Params, arguments: argparse.Namespace) -> StagePlan:
    sets = plan_sets(params, arguments.model)
    return StagePlan(
        "sample-base" if arguments.model == BASE else f"sample@{arguments.model}",
        SAMPLES / arguments.model,
        params.sample.model_dump() | {"seeds": params.align.seeds},
        (SUBSET, TOKENIZER, *dict.fromkeys(s.generator for s in sets)),
    )


def choose_classes(count: int, classes: int, how: str, seed: int) -> np.ndarray:
    """Class ids [count] of a set: equally many of each, or uniform draws as in the paper's tables."""
    if how == "balanced":
        return np.arange(count) % classes
    return stream(seed, "classes").integers(classes, size=count)


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    params = stage.params.sample
    sets = plan_sets(stage.params, arguments.model)
    tokenizer = open_tokenizer(stage.device)
    classes = len(Subset.open(SUBSET).classes)
    with progress(stage.plan.name, len(sets) * params.count, "images") as advance:
        for sample_set in sets:
            generator = open_generator(sample_set.generator, stage.device)
            class_ids = choose_classes(params.count, classes, params.classes, params.seed + sample_set.seed)
            write_set(sample_set, generator, tokenizer, class_ids, stage, advance)
    stage.metrics["images"] = len(sets) * params.count


def write_set(
    sample_set: SampleSet,
    generator: Generator,
    tokenizer: Tokenizer,
    class_ids: np.ndarray,
    stage: Stage,
    advance: Advance,
) -> None:
    """Samples one set and writes its directory: images.npy, labels.npy, grid.png, manifest.json."""
    params = stage.params.sample
    seed = params.seed + sample_set.seed
    side = generator.config.grid * tokenizer.config.downsample
    with atomic_path(sample_set.directory) as temporary:
        temporary.mkdir()
        with array_writer(temporary / "images.npy", (params.count, side, side, 3), np.uint8) as append:
            for start in range(0, params.count, params.batch_size):
                batch = class_ids[start : start + params.batch_size]
                images = draw_images(generator, tokenizer, batch, start, seed, sample_set.config)
                append(images)
                advance(len(batch))
        np.save(temporary / "labels.npy", class_ids.astype(np.int64))
        save_grid(temporary / "grid.png", np.load(temporary / "images.npy", mmap_mode="r")[:GRID_IMAGES], GRID_COLUMNS)
        write_json(
            temporary / "manifest.json",
            {
                "kind": "samples",
                "model": sample_set.model,
                "seed": sample_set.seed,
                "sampling_seed": seed,
                "count": params.count,
                "shape": [params.count, side, side, 3],
                "dtype": "uint8",
                "temperature": sample_set.config.temperature,
                "guidance_scale": sample_set.config.guidance_scale,
                "top_k": sample_set.config.top_k,
                "top_p": sample_set.config.top_p,
                "generator_sha256": model_hash(sample_set.generator, "generator"),
                "tokenizer_sha256": model_hash(TOKENIZER, "tokenizer"),
                "run": read_json(sample_set.generator / RUN_FILE)["key"],
            },
        )


def draw_images(
    generator: Generator, tokenizer: Tokenizer, class_ids: np.ndarray, start: int, seed: int, config: SamplingConfig
) -> np.ndarray:
    """Images start..start+B of a set, uint8 [B, H, W, 3]."""
    device = generator.device
    uniforms = sampling_uniforms(seed, range(start, start + len(class_ids)), generator.config.length)
    tokens = generate(generator, torch.from_numpy(class_ids).to(device), uniforms.to(device), config)
    with torch.inference_mode():
        return to_uint8(tokenizer.decode(tokens))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    run_stage(plan, work, parser)
