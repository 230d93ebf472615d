"""The command line of `python -m benchmarks`."""

import argparse
from pathlib import Path

from benchmarks.measure import PAIRS
from vapi_core.models.llamagen.generator import OFFICIAL_GENERATORS
from vapi_core.models.llamagen.tokenizer import OFFICIAL_TOKENIZERS

REPORTS = Path("reports/benchmarks")
NAMES = ("align", "sample", "tokenize", "score", "pipeline")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """What `arguments` ask for, by default those of the process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ours against the authors' schedule.")
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="{gpu," + ",".join(NAMES) + "}")
    _add_gpu(benchmarks.add_parser("gpu", help="everything that needs a GPU, at full size"))
    for name in NAMES:
        _add_pairs(benchmarks.add_parser(name))
    return parser.parse_args(arguments)


def _add_gpu(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=25.0, help="after so many no part is begun or goes on")
    parser.add_argument("--reference", type=Path, help="folder of the official numbers, for the parity on a GPU")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="some of the parts; all")
    parser.add_argument("--folder", type=Path, default=REPORTS, help="of the results, NAME.json and NAME.md")
    parser.add_argument("--name", default="gpu", help="of the results' files")
    parser.add_argument("--quick", action="store_true", help="tiny models, on a CPU too: only that everything runs")


def _add_pairs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", required=True, help="profiles/NAME.yaml gives the shapes")
    parser.add_argument("--quick", action="store_true", help="small shapes, no timing: only that results are equal")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="interleaved runs of both sides")
    parser.add_argument("--growth", action="store_true", help="measure how peak memory grows too (not pipeline)")
    parser.add_argument("--generator", choices=OFFICIAL_GENERATORS, help="instead of the profile's")
    parser.add_argument(
        "--tokenizer", choices=OFFICIAL_TOKENIZERS, help="instead of the profile's, with LPIPS's network"
    )
    parser.add_argument("--image-size", type=int, help="instead of the profile's")
    parser.add_argument("--images", type=int, help="of a step or a batch, instead of align.batch_size")
    parser.add_argument("--group-size", type=int, help="instead of align.group_size")
    parser.add_argument("--count", type=int, help="images that tokenize and score go through")
    parser.add_argument("--contexts-at-a-time", type=int, help="the authors' repeated contexts of one pass; all")
    parser.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw", help="sgd holds no moments")
    parser.add_argument("--compile", action="store_true", help="sample with the compiled decode step")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--name", help="of the results' files; BENCHMARK-PROFILE")
