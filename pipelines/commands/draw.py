"""Images for any prompts from the run's generators, or those of a finished set, as a folder in GenEval's layout.

Then `vapi geneval FOLDER`, `vapi score FOLDER`, or the official scripts. Prompts are GenEval's (.jsonl) or any others
(.csv, .tsv, .json, one a line), and need not be those of the run; its generators, text encoder and sampling parameters
are used. Image k of prompt i is drawn from the stream that the stage `sample` would draw it from. An interrupted run
goes on where it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.commands.device import choose_device
from pipelines.config.loading import load_params
from pipelines.config.params import Params
from pipelines.config.paths import CAPTIONS, remedy
from pipelines.config.variant import BASE, find_variant
from pipelines.frame.inputs import open_generator, open_prompts, open_samples, open_tokenizer
from pipelines.frame.progress import progress
from vapi_core.data.subset import MANIFEST, read_manifest
from vapi_core.errors import FileError, ParameterError
from vapi_core.files import read_json, write_json
from vapi_core.fingerprint import fingerprint, training_code
from vapi_core.models.checkpoints import model_hash
from vapi_core.models.families import FAMILIES
from vapi_core.models.llamagen.tokenizer import Tokenizer
from vapi_core.models.policy import Condition
from vapi_core.sampling.drawing import draw_images
from vapi_core.sampling.sampler import Sampler, SamplingConfig
from vapi_core.scenes.source import DIGITS
from vapi_core.scoring.geneval.detectors import COCO_CLASSES
from vapi_core.scoring.geneval.folder import Prompt, read_prompts, sample_path, write_prompts, write_sample
from vapi_core.scoring.preference import read_prompt_list

DRAWN = "draw.json"  # in the folder: all that determines its images
BATCH = 16


def read_any_prompts(path: Path, params: Params) -> list[Prompt]:
    """Prompts of GenEval, checked by its rules, or of any other file.

    Raises:
        FileError: the file is missing, or prompts are wrong; they are counted and named.
    """
    if path.suffix == ".jsonl":
        return read_prompts(path, DIGITS if params.subset.source == "scenes" else COCO_CLASSES)
    return read_prompt_list(path)


def open_text(params: Params, texts: Sequence[str], device: torch.device) -> Callable[[Sequence[str]], Condition]:
    """What turns texts into conditions, by the run's text encoder.

    Raises:
        LongCaptionError: texts are too long and may not be cut off; names them.
    """
    assert params.captions is not None
    family = FAMILIES[params.generator.family]
    return family.open_encoder(CAPTIONS, texts, params.captions, device, remedy(CAPTIONS))


def sampling(params: Params, guidance: float | None, temperature: float | None) -> SamplingConfig:
    """The run's sampling parameters, or those that are given."""
    s = params.sample
    config = s.config(s.temperature, s.guidance_scales[0])
    if guidance is not None:
        config = replace(config, guidance_scale=guidance)
    return config if temperature is None else replace(config, temperature=temperature)


def draw(
    folder: Path,
    prompts: Path,
    *,
    variant: str = BASE,
    seed: int | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
    count: int | None = None,
    batch_size: int = BATCH,
    device: str = "auto",
) -> int:
    """Draws what the folder lacks; returns how many images it has then. What is None is the run's.

    Args:
        prompts: GenEval's .jsonl, or .csv, .tsv, .json, .txt.
        variant: one of params.yaml, or base.
        seed: of the alignment and of the images.
        count: images of a prompt.
        batch_size: images drawn at once. Another number rounds differently, which changes a token here and there.

    Raises:
        ParameterError: the run is not text to image, or has no such variant.
        FileError: prompts, models or the folder are not what they must be.
    """
    params = load_params()
    if params.task != "t2i":
        raise ParameterError("task", "images are drawn by prompts where the run is text to image (task: t2i).")
    wanted = read_any_prompts(prompts, params)
    seed = params.align.seeds[0] if seed is None else seed
    made = find_variant(params, variant).image_set(seed, sampling(params, guidance, temperature))
    count, stream_seed = count or params.sample.count, params.sample.seed + seed
    drawn = {
        "variant": made.variant,
        "seed": seed,
        "sampling_seed": stream_seed,
        "images_per_prompt": count,
        **vars(made.config),
        "generator_sha256": model_hash(made.generator, "generator", remedy(made.generator)),
        "tokenizer_sha256": model_hash(made.tokenizer, "tokenizer", remedy(made.tokenizer)),
        "code_sha256": fingerprint(code=training_code()),
    }
    check_folder(folder, drawn)
    write_prompts(folder, wanted)
    write_json(folder / DRAWN, drawn)
    texts = [prompt.text for prompt in wanted]
    places = [(i, k) for i in range(len(wanted)) for k in range(count)]
    missing = [n for n, place in enumerate(places) if not sample_path(folder, *place).exists()]
    used = torch.device(choose_device(device))
    encode = open_text(params, texts, used)
    dtype = getattr(torch, params.launch.dtype)
    sampler = Sampler(open_generator(made.generator, used).to(dtype), made.config)
    tokenizer = open_tokenizer(used, made.tokenizer)
    size = params.sample.save_size or params.subset.image_size
    draw_missing(
        sampler,
        tokenizer,
        missing,
        lambda batch: encode([texts[places[n][0]] for n in batch]),
        lambda n, image: write_sample(folder, *places[n], image),
        stream_seed,
        size,
        batch_size,
    )
    return len(places)


def draw_missing(
    sampler: Sampler,
    tokenizer: Tokenizer,
    missing: Sequence[int],
    condition: Callable[[np.ndarray], Condition],
    write: Callable[[int, np.ndarray], object],
    seed: int,
    size: int,
    batch_size: int,
) -> None:
    """Draws the images of these numbers batch by batch, with the streams of these numbers, and writes each."""
    with progress("draw", len(missing), "images") as advance:
        for start in range(0, len(missing), batch_size):
            batch = np.array(missing[start : start + batch_size])
            images = draw_images(sampler, tokenizer, condition(batch), batch, seed, size)
            for n, image in zip(batch.tolist(), images, strict=True):
                write(n, image)
            advance(len(batch))


def check_folder(folder: Path, drawn: dict[str, Any]) -> None:
    """Raises FileError where the folder has images that were drawn otherwise."""
    path = folder / DRAWN
    if path.exists():
        before = read_json(path, "Remove the folder.")
        if unlike := [name for name, value in drawn.items() if before.get(name) != value]:
            names = ", ".join(f"{name} {before.get(name)}, not {drawn[name]}" for name in unlike)
            raise FileError(folder, f"its images are others: {names}.", "Name another folder.")
    elif folder.is_dir() and any(folder.iterdir()):
        raise FileError(folder, "the folder is not empty, and this command did not make it.", "Name another folder.")


def export_folder(directory: Path, folder: Path) -> int:
    """Writes the images of a set of the run; returns how many.

    Raises:
        FileError: no such set, or one that was not drawn by prompts.
    """
    advice = "Name a folder below data/samples, as `dvc repro` makes it."
    manifest = read_manifest(directory / MANIFEST, "samples", advice)
    prompts = open_prompts()
    if not prompts:
        raise FileError(directory, "this set was drawn by classes; GenEval's layout is for prompts.")
    check_folder(folder, manifest)
    write_prompts(folder, prompts)
    write_json(folder / DRAWN, manifest)
    images, labels = open_samples(directory, advice)
    seen = np.zeros(len(prompts), dtype=int)
    with progress("export", len(images), "images") as advance:
        for image, prompt in zip(images, labels, strict=True):
            write_sample(folder, int(prompt), int(seen[prompt]), image)
            seen[prompt] += 1
            advance()
    return len(images)
