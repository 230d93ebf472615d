"""The image sets of a variant: which images are missing, drawing them, and the files of a whole set.

Image i of a set is drawn from the stream (sampling seed, i), whatever the variant, the temperature or the guidance:
sets of the same seed differ in nothing else, so that their scores can be paired. For text to image a set has
`sample.count` images of each prompt, one prompt's after the other's. Until all sets are whole they grow in the work
folder, which DVC does not empty, so that a stage that was killed goes on from the images it has.
"""

import json
import shutil
from typing import Any

import numpy as np

from pipelines.config.params import Params
from pipelines.config.paths import OWN_WORK, RUN_FILE, SUBSET, TOKENS, remedy
from pipelines.config.variant import ImageSet, Variant
from pipelines.frame.grids import save_grid
from pipelines.frame.inputs import (
    IMAGES,
    LABELS,
    caption_conditions,
    open_generator,
    open_prompts,
    open_subset,
    open_tokenizer,
)
from pipelines.frame.progress import Advance, progress
from pipelines.frame.stage import Stage, descriptions
from vapi_core import distributed
from vapi_core.arrays import write_manifest
from vapi_core.data.batches import batch_conditions
from vapi_core.data.partial import PartialArray
from vapi_core.data.subset import subset_hash
from vapi_core.files import atomic_path, read_texts
from vapi_core.fingerprint import fingerprint, training_code
from vapi_core.memory import free_bytes
from vapi_core.models.checkpoints import model_hash
from vapi_core.models.policy import Conditions
from vapi_core.sampling.drawing import choose_classes, draw_images
from vapi_core.sampling.sampler import Sampler, batch_in_memory

GRID_IMAGES, GRID_COLUMNS = 100, 10


def draw_variant(stage: Stage, variant: Variant) -> None:
    """Draws what is missing of a variant's sets, and writes them all."""
    sets = variant.sets
    arrays = open_arrays(stage, sets)
    size = batch_size(stage, sets)
    missing = [images.missing(size) for images in arrays]
    distributed.barrier()  # nobody writes before all know what is missing
    total = sum(images.shape[0] for images in arrays)
    with progress(stage.plan.name, total, "images") as advance:
        for image_set, images, parts in zip(sets, arrays, missing, strict=True):
            advance(images.shape[0] - sum(map(len, parts)))
            fill(images, distributed.share(parts), image_set, stage, advance)
    distributed.barrier()
    if distributed.is_main():
        for image_set, images in zip(sets, arrays, strict=True):
            write_set(image_set, variant, images, stage)
    stage.metrics["images"] = total


def choose_labels(params: Params, seed: int) -> np.ndarray:
    """Labels int64 [N] of a set's images: their classes, or the numbers of their prompts."""
    s = params.sample
    if params.task == "t2i":
        return np.repeat(np.arange(len(open_prompts())), s.count)
    return choose_classes(s.count, len(open_subset().classes), s.classes, seed)


def open_conditions(params: Params, labels: np.ndarray) -> np.ndarray | Conditions:
    """The conditions of images with these labels."""
    if params.task == "c2i":
        return labels
    prompts = open_prompts()
    return caption_conditions([prompts[label].text for label in labels], params.generator.family)


def batch_size(stage: Stage, sets: list[ImageSet]) -> int:
    """How many images to draw at once: the parameter's number, or what memory allows the main process."""
    if stage.params.sample.batch_size is not None:
        return stage.params.sample.batch_size
    generator = open_generator(sets[0].generator, stage.device).to(stage.dtype)
    tokenizer = open_tokenizer(stage.device, sets[0].tokenizer)
    guided = any(s.config.guidance_scale != 1.0 for s in sets)
    return int(distributed.from_main(batch_in_memory(free_bytes(stage.device), generator, tokenizer, guided)))


def open_arrays(stage: Stage, sets: list[ImageSet]) -> list[PartialArray]:
    """The arrays in which the sets grow, gone on with if they are of the same models, settings, inputs and code; others
    are removed."""
    folder = OWN_WORK / "samples" / stage.plan.name

    def open_all() -> list[PartialArray]:
        manifests = [describe(image_set, stage.params) for image_set in sets]
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


def describe(image_set: ImageSet, params: Params) -> dict[str, Any]:
    """Manifest of a set: all that determines its images."""
    s, config = params.sample, image_set.config
    side = s.save_size or params.subset.image_size
    count = len(choose_labels(params, s.seed + image_set.seed))
    return {
        "kind": "samples",
        "variant": image_set.variant,
        "steps": image_set.steps,
        "seed": image_set.seed,
        "sampling_seed": s.seed + image_set.seed,
        "count": count,
        "classes": s.classes,
        "shape": [count, side, side, 3],
        "dtype": "uint8",
        "generated_size": params.subset.image_size,
        "temperature": config.temperature,
        "guidance_scale": config.guidance_scale,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "weights_dtype": params.launch.dtype,
        "subset_sha256": subset_hash(SUBSET, remedy(SUBSET)),  # classes, or prompts
        "generator_sha256": model_hash(image_set.generator, "generator", remedy(image_set.generator)),
        "tokenizer_sha256": model_hash(image_set.tokenizer, "tokenizer", remedy(image_set.tokenizer)),
    }


def fill(images: PartialArray, parts: list[range], image_set: ImageSet, stage: Stage, advance: Advance) -> None:
    """Draws these parts of a set."""
    if not parts:
        return
    params = stage.params.sample
    seed = params.seed + image_set.seed
    conditions = open_conditions(stage.params, choose_labels(stage.params, seed))
    generator = open_generator(image_set.generator, stage.device).to(stage.dtype)
    tokenizer = open_tokenizer(stage.device, image_set.tokenizer)
    sampler = Sampler(generator, image_set.config, stage.params.launch.compile)
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


def write_set(image_set: ImageSet, variant: Variant, images: PartialArray, stage: Stage) -> None:
    """Writes the directory of a set: images.npy, labels.npy, grid.png, manifest.json."""
    output = variant.output(image_set.seed)
    labels = choose_labels(stage.params, stage.params.sample.seed + image_set.seed)
    run = read_texts(output / RUN_FILE, ["key"], remedy(output))["key"]
    with atomic_path(image_set.directory) as temporary:
        temporary.mkdir()
        images.finish(temporary / IMAGES)
        np.save(temporary / LABELS, labels.astype(np.int64))
        shown = grid_items(stage.params, len(labels))
        save_grid(temporary / "grid.png", np.load(temporary / IMAGES, mmap_mode="r")[shown], GRID_COLUMNS)
        write_manifest(temporary, describe(image_set, stage.params) | {"run": run}, (IMAGES, LABELS))
