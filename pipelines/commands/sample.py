"""Images from any checkpoint, without an experiment: classes or prompts in, PNGs out.

Images of class c lie in FOLDER/c, those of prompts as GenEval lays them out. Image k of the i-th class or prompt has a
random stream of its own, whatever the batch size. An interrupted run goes on where it was.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.commands.checkpoint import FILES, open_generator, open_tokenizer
from pipelines.commands.device import choose_device
from pipelines.commands.draw import DRAWN, check_folder, draw_missing
from vapi_core.errors import ParameterError, quoted
from vapi_core.files import atomic_path, sha256_file, write_json
from vapi_core.models.families import FAMILIES
from vapi_core.models.family import CaptionConfig
from vapi_core.models.janus.policy import Janus
from vapi_core.models.janus.prompts import JANUS_PRO_1B
from vapi_core.models.llamagen.generator import GeneratorConfig
from vapi_core.models.policy import Condition, Policy
from vapi_core.sampling.sampler import Sampler, SamplingConfig
from vapi_core.scoring.geneval.folder import Prompt, sample_path, write_prompts, write_sample
from vapi_core.scoring.preference import read_prompt_list

FLAN_T5_DIM = 2048  # of FLAN-T5-XL's features, which official generators read
JANUS_TOKENS = 512
Encode = Callable[[np.ndarray], Condition]  # numbers of classes or prompts to conditions


def sample(
    folder: Path,
    generator: str,
    tokenizer: str | None,
    *,
    classes: Sequence[int] = (),
    prompts: Path | None = None,
    texts: Sequence[str] = (),
    text_encoder: str | None = None,
    image_size: int | None = None,
    heads: int | None = None,
    count: int = 1,
    seed: int = 0,
    config: SamplingConfig | None = None,
    batch_size: int = 16,
    device: str = "auto",
) -> int:
    """Draws what the folder lacks; returns how many images it has then.

    Args:
        generator: LlamaGen's `.pt`, a folder of ours, a Janus folder or hub id.
        tokenizer: the same of the tokenizer; None: it is beside the generator.
        classes: numbers of classes, or else
        prompts: a file of prompts, and
        texts: further prompts.
        text_encoder: FLAN-T5-XL, or where a folder of ours with a Janus finds its prompts' tokenizer.
        image_size: of LlamaGen's files, and
        heads: of those of no official size.
        count: images of a class or prompt.

    Raises:
        ParameterError: what is asked for cannot be drawn from this generator.
        FileError: a checkpoint, the prompts or the folder are not what they must be.
    """
    config = config or SamplingConfig()
    wanted = [*(read_prompt_list(prompts) if prompts else ()), *(Prompt({"prompt": text}) for text in texts)]
    if bool(classes) == bool(wanted):
        raise ParameterError("--classes", "give either classes, or prompts by --prompts or --prompt.")
    used = torch.device(choose_device(device))
    vq = open_tokenizer(tokenizer or _beside(generator)).to(used).requires_grad_(False)
    policy = open_generator(generator, vq.config.downsample, image_size, heads).to(used)
    check_codes(policy, vq.config.codebook_size)
    encode = (
        class_conditions(policy, classes, used)
        if classes
        else text_conditions(policy, generator, text_encoder, [prompt.text for prompt in wanted], used)
    )
    asked = {"classes": list(classes)} if classes else {"prompts": len(wanted)}
    drawn = {
        **asked,
        "generator": describe(generator),
        "tokenizer": describe(tokenizer or _beside(generator)),
        "images_of_each": count,
        "sampling_seed": seed,
        **vars(config),
    }
    check_folder(folder, drawn)
    write_prompts(folder, wanted)
    write_json(folder / DRAWN, drawn)
    places = [(i, k) for i in range(len(classes) or len(wanted)) for k in range(count)]

    def path_of(place: tuple[int, int]) -> Path:
        i, k = place
        return folder / str(classes[i]) / f"{k:04}.png" if classes else sample_path(folder, i, k)

    def write(n: int, image: np.ndarray) -> None:
        if not classes:
            write_sample(folder, *places[n], image)
            return
        with atomic_path(path_of(places[n])) as temporary:
            Image.fromarray(image).save(temporary, format="png")

    missing = [n for n, place in enumerate(places) if not path_of(place).exists()]
    size = policy.config.grid * vq.config.downsample
    numbers = np.array([i for i, _ in places])
    draw_missing(
        Sampler(policy, config), vq, missing, lambda batch: encode(numbers[batch]), write, seed, size, batch_size
    )
    return len(places)


def class_conditions(policy: Policy, classes: Sequence[int], device: torch.device) -> Encode:
    """Classes as conditions. Raises ParameterError where the generator does not know one."""
    if not isinstance(policy.config, GeneratorConfig) or policy.config.caption_dim is not None:
        raise ParameterError("--classes", "this generator draws by prompts; give --prompts or --prompt.")
    if unknown := [number for number in classes if not 0 <= number < policy.config.classes]:
        last = policy.config.classes - 1
        raise ParameterError("--classes", f"this generator has the classes 0 to {last}, and not {unknown[0]}.")
    if twice := [number for number in classes if list(classes).count(number) > 1]:
        raise ParameterError("--classes", f"{twice[0]} is there twice; --count says how many images each has.")
    ids = torch.tensor(list(classes), device=device)
    return lambda numbers: ids[torch.from_numpy(numbers).to(device)]


def text_conditions(
    policy: Policy, generator: str, text_encoder: str | None, texts: Sequence[str], device: torch.device
) -> Encode:
    """Prompts as conditions, by FLAN-T5-XL or as Janus reads them.

    Raises:
        ParameterError: the generator draws by classes, or reads the features of a run.
        LongCaptionError: a prompt is too long; names it.
        FileError: there is no encoder.
    """
    if isinstance(policy, Janus):
        place = text_encoder or (JANUS_PRO_1B if (Path(generator) / "generator.json").is_file() else generator)
        config = CaptionConfig(encoder="janus", tokens=JANUS_TOKENS)
        read = FAMILIES["janus"].open_encoder(Path(place), texts, config, device, "")
    else:
        assert isinstance(policy.config, GeneratorConfig)
        dim = policy.config.caption_dim
        if dim is None:
            raise ParameterError("--prompts", "this generator draws by classes; give --classes.")
        if dim != FLAN_T5_DIM:
            problem = f"this generator reads features of width {dim} of its own run; draw there, by --variant."
            raise ParameterError("--generator", problem)
        config = CaptionConfig(encoder="flan-t5-xl", checkpoint=text_encoder, tokens=policy.config.caption_tokens)
        read = FAMILIES["llamagen"].open_encoder(Path(), texts, config, device, "")
    return lambda numbers: read([texts[i] for i in numbers])


def check_codes(policy: Policy, codes: int) -> None:
    """Raises ParameterError where generator and tokenizer have different codebooks."""
    if policy.config.codebook_size != codes:
        problem = f"it has {codes} codes, and the generator draws from {policy.config.codebook_size}."
        raise ParameterError("--tokenizer", problem)


def describe(checkpoint: str) -> str:
    """What a checkpoint is: the sha256 of a file's content, else its name."""
    path = Path(checkpoint)
    for file in (path, path / "generator.safetensors", path / "tokenizer.safetensors"):
        if file.is_file():
            return sha256_file(file)
    return checkpoint


def _beside(generator: str) -> str:
    """Where the tokenizer is if none is named: in the same folder. Raises ParameterError for a single file."""
    if Path(generator).suffix in FILES:
        raise ParameterError("--tokenizer", f"{quoted(generator)} has none; name LlamaGen's, e.g. vq_ds16_c2i.pt.")
    return generator


def parse_classes(text: str | None) -> list[int]:
    """Numbers with commas between. Raises ParameterError where they are none."""
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ParameterError("--classes", f"{quoted(text)} are no numbers; write e.g. 207,360.") from None
