"""The user's command: CLIP score or HPSv2 of any folder of images, without training anything and without MLflow.

    python -m pipelines.commands.preference FOLDER [--prompts drawbench.csv] [--score hpsv2] [--weights PATH]

The folder is laid out as GenEval's: 00000/metadata.jsonl holds a prompt, 00000/samples/ its images. With --prompts the
prompts of a DrawBench-style file are put there first. The scores are printed and go to FOLDER/SCORE.json. Exit code 1 if
anything could not be scored.
"""

import argparse
import math
import sys
from pathlib import Path

from pipelines.commands.geneval import choose_device, counted, exit_code, positive
from pipelines.frame.launch import one_message
from vapi_core.errors import FileError
from vapi_core.files import write_json
from vapi_core.scoring.geneval.folder import read_folder, write_prompts
from vapi_core.scoring.preference import (
    HPS_FILES,
    PreferenceScore,
    load_preference_model,
    read_prompt_list,
    score_folder,
)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.commands.preference", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="images in GenEval's layout")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="DrawBench-style .csv, .tsv, .json or .txt")
    parser.add_argument("--score", choices=("clip", "hpsv2"), default="clip")
    parser.add_argument("--weights", metavar="PATH", help="a file or an open_clip folder (default: the hub cache)")
    parser.add_argument("--hps-version", choices=tuple(HPS_FILES), default="2.0")
    parser.add_argument("--batch-size", type=positive, default=32)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser.parse_args(arguments)


def run(arguments: argparse.Namespace) -> PreferenceScore:
    """Scores the folder and writes its score."""
    folder: Path = arguments.folder
    if arguments.prompts is not None:
        if not folder.is_dir():
            raise FileError(folder, "there is no such folder.")
        write_prompts(folder, read_prompt_list(arguments.prompts))
    read_folder(folder, classes=None)  # before the model, which takes its time
    clip = load_preference_model(
        arguments.score, arguments.weights, choose_device(arguments.device), arguments.hps_version
    )
    with counted(arguments.score) as log:
        score = score_folder(folder, clip, arguments.batch_size, log=log)
    write_json(folder / f"{arguments.score}.json", score.json_ready())
    error = "" if math.isnan(score.standard_error) else f"standard error {score.standard_error:.4f}, "
    print(
        f"{arguments.score} by {score.model}: {score.mean:.4f}, {error}"
        f"95 % interval {score.low:.4f} - {score.high:.4f} ({score.images} images of {score.prompts} prompts)"
    )
    for category, mean in score.categories.items():
        print(f"  {category}: {mean:.4f}")
    return score


@one_message
def main(arguments: list[str]) -> int:
    """Runs the command; 1 on an error of the user's or where images could not be scored."""
    score = run(parse(arguments))
    return exit_code(score.images, score.missing, score.unreadable)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
