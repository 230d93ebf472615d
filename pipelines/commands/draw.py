"""The user's command: images for any prompts, or those of a finished set, as a folder in GenEval's layout.

    python -m pipelines.commands.draw FOLDER --prompts drawbench.csv [--variant va-pi --seed 0] [--guidance 7.5] [--count 4]
    python -m pipelines.commands.draw FOLDER --set data/samples/experiment/va-pi/t1.0-g7.5-0

Then `python -m pipelines.commands.geneval FOLDER`, `... preference FOLDER`, or the official scripts. Prompts are GenEval's
(.jsonl) or any others (.csv, .tsv, .json, one a line), and need not be those of the run; its generators, text encoder and
sampling parameters are used. Image k of prompt i is drawn from the stream that the stage `sample` would draw it from. An
interrupted run goes on where it was.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.commands.geneval import choose_device, positive
from pipelines.config.params import Params
from pipelines.config.paths import CAPTIONS, remedy
from pipelines.frame.inputs import open_generator, open_prompts, open_samples, open_tokenizer
from pipelines.frame.launch import one_message
from pipelines.frame.progress import progress
from pipelines.variants.loading import load_params
from pipelines.variants.variant import BASE, find_variant
from vapi_core.data.subset import MANIFEST, read_manifest
from vapi_core.errors import FileError, ParameterError
from vapi_core.files import read_json, write_json
from vapi_core.fingerprint import fingerprint, training_code
from vapi_core.models.checkpoints import model_hash
from vapi_core.models.families import FAMILIES
from vapi_core.models.policy import Condition
from vapi_core.sampling.drawing import draw_images
from vapi_core.sampling.sampler import Sampler, SamplingConfig
from vapi_core.scenes.source import DIGITS
from vapi_core.scoring.geneval.detectors import COCO_CLASSES
from vapi_core.scoring.geneval.folder import Prompt, read_prompts, sample_path, write_prompts, write_sample
from vapi_core.scoring.preference import read_prompt_list

DRAWN = "draw.json"  # in the folder: all that determines its images
BATCH = 16


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipelines.commands.draw", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the images go, in GenEval's layout")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompts", type=Path, metavar="FILE", help="GenEval's .jsonl, or .csv, .tsv, .json, .txt")
    what.add_argument("--set", type=Path, metavar="DIR", help="a finished image set of the run, below data/samples")
    parser.add_argument("--variant", default=BASE, help="one of params.yaml, or base (the default)")
    parser.add_argument(
        "--seed", type=int, help="of the alignment and of the images (default: the first of align.seeds)"
    )
    parser.add_argument("--guidance", type=float, help="default: the first of sample.guidance_scales")
    parser.add_argument("--temperature", type=float, help="default: sample.temperature")
    parser.add_argument("--count", type=positive, help="images of a prompt (default: sample.count)")
    parser.add_argument("--batch-size", type=positive, default=BATCH, help="has no influence on the images")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser.parse_args(arguments)


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


def sampling(params: Params, arguments: argparse.Namespace) -> SamplingConfig:
    """The run's sampling parameters, or those of the command line."""
    s, given = params.sample, arguments
    config = s.config(s.temperature, s.guidance_scales[0])
    if given.guidance is not None:
        config = replace(config, guidance_scale=given.guidance)
    return config if given.temperature is None else replace(config, temperature=given.temperature)


def draw(arguments: argparse.Namespace, params: Params) -> int:
    """Draws what the folder lacks; returns how many images it has then."""
    prompts = read_any_prompts(arguments.prompts, params)
    seed = params.align.seeds[0] if arguments.seed is None else arguments.seed
    made = find_variant(params, arguments.variant).image_set(seed, sampling(params, arguments))
    count, stream_seed = arguments.count or params.sample.count, params.sample.seed + seed
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
    check_folder(arguments.folder, drawn)
    write_prompts(arguments.folder, prompts)
    write_json(arguments.folder / DRAWN, drawn)
    texts = [prompt.text for prompt in prompts]
    places = [(i, k) for i in range(len(prompts)) for k in range(count)]
    missing = [n for n, place in enumerate(places) if not sample_path(arguments.folder, *place).exists()]
    device = torch.device(choose_device(arguments.device))
    encode = open_text(params, texts, device)
    dtype = getattr(torch, params.launch.dtype)
    sampler = Sampler(open_generator(made.generator, device).to(dtype), made.config)
    tokenizer = open_tokenizer(device, made.tokenizer)
    size = params.sample.save_size or params.subset.image_size
    with progress("draw", len(missing), "images") as advance:
        for start in range(0, len(missing), arguments.batch_size):
            batch: Any = np.array(missing[start : start + arguments.batch_size])
            condition = encode([texts[places[n][0]] for n in batch])
            for n, image in zip(
                batch, draw_images(sampler, tokenizer, condition, batch, stream_seed, size), strict=True
            ):
                prompt, sample = places[n]
                write_sample(arguments.folder, prompt, sample, image)
            advance(len(batch))
    return len(places)


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


def export(folder: Path, directory: Path) -> int:
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


def run(arguments: argparse.Namespace) -> int:
    """Draws or exports."""
    if arguments.set is not None:
        return export(arguments.folder, arguments.set)
    params = load_params()
    if params.task != "t2i":
        raise ParameterError("task", "images are drawn by prompts where the run is text to image (task: t2i).")
    return draw(arguments, params)


@one_message
def main(arguments: list[str]) -> int:
    """Runs the command; 1 on an error of the user's."""
    given = parse(arguments)
    print(f"{run(given)} images in {given.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
