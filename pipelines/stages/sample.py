"""Stage `sample`: image sets from the base generator and its controls, or from all seeds of one alignment method.

For text to image a set has `sample.count` images of each prompt, one prompt's after the other's.
Image i of a set is drawn from the stream (sampling seed, i), whatever the model, the temperature or the guidance: sets
of the same sampling seed differ in nothing else, so that their scores can be paired. A stage that was killed goes on
from the images it has: until all sets are whole they grow in the work folder, which DVC does not empty.
"""

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.figures import save_grid
from pipelines.inputs import IMAGES, LABELS, caption_conditions, open_generator, open_prompts, open_tokenizer
from pipelines.params import Params, decimal
from pipelines.paths import (
    BASE,
    GENERATOR,
    OWN_WORK,
    RIVAL_SAMPLES,
    RUN_FILE,
    SAMPLES,
    SUBSET,
    TOKENIZER,
    TOKENS,
    after_steps,
    aligned,
    is_rival,
    remedy,
    reports_of,
)
from pipelines.progress import Advance, progress
from pipelines.stage import Stage, StagePlan, descriptions, run_stage
from vapi_core import distributed
from vapi_core.alignment.data import Conditions, batch_conditions
from vapi_core.data.partial import PartialArray
from vapi_core.data.subset import Subset, write_manifest
from vapi_core.files import atomic_path, read_texts
from vapi_core.fingerprint import fingerprint, training_code
from vapi_core.images import images_of_a_pass, resize_bicubic, to_uint8
from vapi_core.memory import free_bytes
from vapi_core.models.checkpoints import model_hash
from vapi_core.models.policy import Condition
from vapi_core.models.tokenizer import Tokenizer
from vapi_core.randomness import stream
from vapi_core.sampling import Sampler, SamplingConfig, batch_in_memory, sampling_uniforms

TEMPERATURES = "temperatures"  # the base at those of `rivals`
STEPS = "steps"  # every method on its way, first seed
GRID_IMAGES, GRID_COLUMNS = 100, 10


@dataclass(frozen=True)
class SampleSet:
    """One set of images: which generator, which stream, how drawn."""

    model: str  # "base", or the method that aligned it
    seed: int  # of the alignment, and of the sampling streams
    generator: Path
    config: SamplingConfig
    tokenizer: Path = TOKENIZER
    samples: Path = SAMPLES / BASE  # folder of the model's sets
    steps: int | None = None  # of the alignment; None: all of them

    @property
    def directory(self) -> Path:
        setting = f"t{decimal(self.config.temperature)}-g{decimal(self.config.guidance_scale)}"
        if self.steps is not None:
            setting = f"{self.model}-{self.steps}-{setting}"
        return self.samples / f"{setting}-{self.seed}"

    @property
    def trained(self) -> Path:
        """Output of the stage that trained what the set is drawn from; for the base, of the generator."""
        return GENERATOR if self.model == BASE else aligned(self.model, self.seed)


def samples_of(params: Params, model: str) -> Path:
    """Folder of all sets of a model."""
    return (RIVAL_SAMPLES if is_rival(params, model) else SAMPLES) / model


def plan_sets(params: Params, model: str) -> list[SampleSet]:
    """All sets of one model: every seed with every guidance scale; for the base, the control temperatures too."""
    s, samples = params.sample, samples_of(params, model)
    settings = [s.config(s.temperature, scale) for scale in s.guidance_scales]
    if model == BASE:
        settings += [s.config(temperature, 1.0) for temperature in s.control_temperatures]
    if model == TEMPERATURES:
        settings = [s.config(temperature, 1.0) for temperature in params.rivals.temperatures]
    if model == STEPS:
        seed, setting = params.align.seeds[0], s.config(s.temperature, 1.0)
        methods = (*params.align.methods, *params.rivals.methods)
        return [
            sample_set(method, seed, setting, samples, steps)
            for method in methods
            for steps in params.align.kept_steps()
        ]
    drawn = BASE if model == TEMPERATURES else model
    return [sample_set(drawn, seed, setting, samples) for setting in settings for seed in params.align.seeds]


def sample_set(model: str, seed: int, config: SamplingConfig, samples: Path, steps: int | None = None) -> SampleSet:
    """The set of a model, of whose two networks one was trained."""
    if model == BASE:
        return SampleSet(model, seed, GENERATOR, config, samples=samples)
    trained = aligned(model, seed) if steps is None else after_steps(model, seed, steps)
    if model == "tokenizer":
        return SampleSet(model, seed, GENERATOR, config, trained, samples, steps)
    return SampleSet(model, seed, trained, config, samples=samples, steps=steps)


def plan(params: Params, arguments: argparse.Namespace) -> StagePlan:
    sets = plan_sets(params, arguments.model)
    return StagePlan(
        f"sample-{arguments.model}" if arguments.model in (BASE, TEMPERATURES, STEPS) else f"sample@{arguments.model}",
        samples_of(params, arguments.model),
        params.sample.model_dump()
        | {"seeds": params.align.seeds, "dtype": params.launch.dtype}
        | ({"temperatures": params.rivals.temperatures} if arguments.model == TEMPERATURES else {})
        | ({"kept_steps": params.align.kept_steps()} if arguments.model == STEPS else {}),
        (SUBSET, TOKENIZER, *([TOKENS] if params.task == "t2i" else []), *dict.fromkeys(s.trained for s in sets)),
        reports=reports_of(params, arguments.model),
    )


def choose_classes(count: int, classes: int, how: str, seed: int) -> np.ndarray:
    """Class ids [count] of a set: equally many of each, or uniform draws as in the paper's tables."""
    if how == "balanced":
        return np.arange(count) % classes
    return stream(seed, "classes").integers(classes, size=count)


def choose_labels(params: Params, seed: int) -> np.ndarray:
    """Labels int64 [N] of a set's images: their classes, or the numbers of their prompts."""
    s = params.sample
    if params.task == "t2i":
        return np.repeat(np.arange(len(open_prompts())), s.count)
    return choose_classes(s.count, len(Subset.open(SUBSET).classes), s.classes, seed)


def open_conditions(params: Params, labels: np.ndarray) -> np.ndarray | Conditions:
    """The conditions of images with these labels."""
    if params.task == "c2i":
        return labels
    prompts = open_prompts()
    return caption_conditions([prompts[label].text for label in labels])


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    sets = plan_sets(stage.params, arguments.model)
    arrays = open_arrays(stage, sets)
    size = batch_size(stage, sets)
    missing = [images.missing(size) for images in arrays]
    distributed.barrier()  # nobody writes before all know what is missing
    total = sum(images.shape[0] for images in arrays)
    with progress(stage.plan.name, total, "images") as advance:
        for sample_set, images, parts in zip(sets, arrays, missing, strict=True):
            advance(images.shape[0] - sum(map(len, parts)))
            fill(images, distributed.share(parts), sample_set, stage, advance)
    distributed.barrier()
    if distributed.is_main():
        for sample_set, images in zip(sets, arrays, strict=True):
            write_set(sample_set, images, stage)
    stage.metrics["images"] = total


def batch_size(stage: Stage, sets: list[SampleSet]) -> int:
    """How many images to draw at once: the parameter's number, or what memory allows the main process."""
    if stage.params.sample.batch_size is not None:
        return stage.params.sample.batch_size
    if not sets:
        return 1
    generator = open_generator(sets[0].generator, stage.device).to(stage.dtype)
    tokenizer = open_tokenizer(stage.device, sets[0].tokenizer)
    guided = any(s.config.guidance_scale != 1.0 for s in sets)
    return int(distributed.from_main(batch_in_memory(free_bytes(stage.device), generator, tokenizer, guided)))


def open_arrays(stage: Stage, sets: list[SampleSet]) -> list[PartialArray]:
    """The arrays in which the sets grow, gone on with if they are of the same models, settings, inputs and code; others are
    removed."""
    folder = OWN_WORK / "samples" / stage.plan.name

    def open_all() -> list[PartialArray]:
        manifests = [describe(sample_set, stage.params) for sample_set in sets]
        code, inputs = training_code(), descriptions(path for path in (SUBSET, TOKENS) if path in stage.plan.upstream)
        names = [fingerprint(json.dumps(manifest), code=code, files=inputs)[:16] for manifest in manifests]
        return [
            PartialArray(folder / name, tuple(manifest["shape"]), np.uint8)
            for name, manifest in zip(names, manifests, strict=True)
        ]

    folder.mkdir(parents=True, exist_ok=True)
    if distributed.is_main():
        current = {images.directory for images in open_all()}
        for old in folder.iterdir():
            if old not in current:
                shutil.rmtree(old)
    distributed.barrier()
    return open_all()


def describe(sample_set: SampleSet, params: Params) -> dict[str, Any]:
    """Manifest of a set: all that determines its images."""
    s = params.sample
    side = s.save_size or params.subset.image_size
    count = len(choose_labels(params, s.seed + sample_set.seed))
    return {
        "kind": "samples",
        "model": sample_set.model,
        "steps": sample_set.steps,
        "seed": sample_set.seed,
        "sampling_seed": s.seed + sample_set.seed,
        "count": count,
        "classes": s.classes,
        "shape": [count, side, side, 3],
        "dtype": "uint8",
        "generated_size": params.subset.image_size,
        "temperature": sample_set.config.temperature,
        "guidance_scale": sample_set.config.guidance_scale,
        "top_k": sample_set.config.top_k,
        "top_p": sample_set.config.top_p,
        "weights_dtype": params.launch.dtype,
        "generator_sha256": model_hash(sample_set.generator, "generator", remedy(sample_set.generator)),
        "tokenizer_sha256": model_hash(sample_set.tokenizer, "tokenizer", remedy(sample_set.tokenizer)),
    }


def fill(images: PartialArray, parts: list[range], sample_set: SampleSet, stage: Stage, advance: Advance) -> None:
    """Draws these parts of a set."""
    if not parts:
        return
    params = stage.params.sample
    seed = params.seed + sample_set.seed
    conditions = open_conditions(stage.params, choose_labels(stage.params, seed))
    generator = open_generator(sample_set.generator, stage.device).to(stage.dtype)
    tokenizer = open_tokenizer(stage.device, sample_set.tokenizer)
    sampler = Sampler(generator, sample_set.config, stage.params.launch.compile)
    size = images.shape[1]
    for part in parts:
        condition = batch_conditions(conditions, np.asarray(part), stage.device)
        images.write(part, draw_images(sampler, tokenizer, condition, part, seed, size))
        advance(len(part) * distributed.world_size())  # the others are about as far


def grid_items(params: Params, count: int) -> np.ndarray:
    """Which images of a set its picture shows: the first ones, or of text to image some of all prompts."""
    if params.task == "c2i":
        return np.arange(min(GRID_IMAGES, count))
    return np.linspace(0, count - 1, min(GRID_IMAGES, count)).astype(int)


def draw_images(
    sampler: Sampler, tokenizer: Tokenizer, condition: Condition, indices: range, seed: int, size: int
) -> np.ndarray:
    """The images of these indices of a set, uint8 [B, size, size, 3], of B conditions."""
    policy = sampler.policy
    uniforms = sampling_uniforms(seed, indices, policy.config.length)
    tokens = sampler(condition, uniforms.to(policy.device))
    side = policy.config.grid * tokenizer.config.downsample
    parts = []
    with torch.inference_mode():
        for part in tokens.split(images_of_a_pass(side)):
            images = tokenizer.decode(part)
            parts.append(to_uint8(images if size == side else resize_bicubic(images, size)))
    return np.concatenate(parts)


def write_set(sample_set: SampleSet, images: PartialArray, stage: Stage) -> None:
    """Writes the directory of a set: images.npy, labels.npy, grid.png, manifest.json."""
    labels = choose_labels(stage.params, stage.params.sample.seed + sample_set.seed)
    run = read_texts(sample_set.trained / RUN_FILE, ["key"], remedy(sample_set.trained))["key"]
    with atomic_path(sample_set.directory) as temporary:
        temporary.mkdir()
        images.finish(temporary / IMAGES)
        np.save(temporary / LABELS, labels.astype(np.int64))
        shown = grid_items(stage.params, len(labels))
        save_grid(temporary / "grid.png", np.load(temporary / IMAGES, mmap_mode="r")[shown], GRID_COLUMNS)
        write_manifest(temporary, describe(sample_set, stage.params) | {"run": run}, (IMAGES, LABELS))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    run_stage(plan, work, parser, parallel=True)
