"""CLIP score or HPSv2 of any folder of images, without training anything and without MLflow: `vapi score`.

The folder is laid out as GenEval's: 00000/metadata.jsonl holds a prompt, 00000/samples/ its images. The scores are
printed and go to FOLDER/SCORE.json.
"""

import math
from pathlib import Path

from pipelines.commands.device import choose_device
from pipelines.commands.evaluation import counted, exit_code
from vapi_core.errors import FileError, ParameterError, quoted
from vapi_core.files import write_json
from vapi_core.scoring.geneval.folder import read_folder, write_prompts
from vapi_core.scoring.preference import HPS_FILES, load_preference_model, read_prompt_list, score_folder

SCORES = ("clip", "hpsv2")


def score(
    folder: Path,
    *,
    by: str = "clip",
    prompts: Path | None = None,
    weights: str | None = None,
    hps_version: str = "2.0",
    batch_size: int = 32,
    device: str = "auto",
) -> int:
    """Scores the folder, writes and prints its score; returns the exit code.

    Args:
        by: clip or hpsv2.
        prompts: a DrawBench-style file, whose prompts are put in the folder first.
        weights: a file or an open_clip folder; None: the hub's cache.
        hps_version: which weights of HPSv2 (2.0 or 2.1).

    Raises:
        FileError: folder, prompts or weights are missing or damaged.
        ParameterError: there is no such score, version or device.
    """
    for name, value, known in (("--by", by, SCORES), ("--hps-version", hps_version, tuple(HPS_FILES))):
        if value not in known:
            raise ParameterError(name, f"there is no {quoted(value)}; there are {', '.join(known)}.")
    if prompts is not None:
        if not folder.is_dir():
            raise FileError(folder, "there is no such folder.")
        write_prompts(folder, read_prompt_list(prompts))
    read_folder(folder, classes=None)  # before the model, which takes its time
    clip = load_preference_model(by, weights, choose_device(device), hps_version)
    with counted(by) as log:
        found = score_folder(folder, clip, batch_size, log=log)
    write_json(folder / f"{by}.json", found.json_ready())
    error = "" if math.isnan(found.standard_error) else f"standard error {found.standard_error:.4f}, "
    print(
        f"{by} by {found.model}: {found.mean:.4f}, {error}"
        f"95 % interval {found.low:.4f} - {found.high:.4f} ({found.images} images of {found.prompts} prompts)"
    )
    for category, mean in found.categories.items():
        print(f"  {category}: {mean:.4f}")
    return exit_code(found.images, found.missing, found.unreadable)
