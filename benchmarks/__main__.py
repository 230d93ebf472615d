"""`python -m benchmarks align|sample|tokenize|score|pipeline --profile NAME`: see docs/speed.md.

Results go to reports/benchmarks/NAME.json and, where matplotlib is installed, NAME.png. `--quick` makes everything small,
measures no time and only checks that both sides give the same: exit code 1 if they do not.
"""

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path

import torch

from benchmarks.figures import save_figure, save_start_up
from benchmarks.measure import PAIRS, Results
from benchmarks.summary import summary
from vapi_core.errors import VapiError
from vapi_core.files import write_json
from vapi_core.models.llamagen.generator import OFFICIAL_GENERATORS
from vapi_core.models.llamagen.tokenizer import OFFICIAL_TOKENIZERS

REPORTS = Path("reports/benchmarks")
NAMES = ("align", "sample", "tokenize", "score", "pipeline")
# how far both sides may differ: float32 on a CPU, bfloat16 on a GPU
LARGEST_DIFFERENCE = {"cpu": {"gradient": 1e-3, "reward": 1e-4}, "cuda": {"gradient": 0.2, "reward": 0.05}}


def differences(results: Results, device: str) -> list[str]:
    """What differs between the sides by more than rounding."""
    limits, found = LARGEST_DIFFERENCE[device], []
    for name, limit in limits.items():
        if results.get(f"{name}_difference", 0.0) > limit:
            found.append(f"{name}s differ by {results[f'{name}_difference']:.3g}, more than {limit}")
    if device == "cpu" and results.get("equal_tokens", 1.0) < 1.0:
        found.append(f"only {results['equal_tokens']:.1%} of the tokens are equal")
    if not results.get("equal_scores", True):
        found.append("the scores differ")
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ours against the authors' schedule.")
    parser.add_argument("benchmark", choices=NAMES)
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
    return parser.parse_args()


def main() -> int:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        results = importlib.import_module(f"benchmarks.{options.benchmark}").benchmark(options)
    except VapiError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    found = differences(results, "cuda" if torch.cuda.is_available() else "cpu")
    for difference in found:
        print(f"error: {difference}", file=sys.stderr)
    if options.quick:
        print(f"{options.benchmark}: {'both sides give the same' if not found else 'FAILED'}")
        return 1 if found else 0
    results["command"] = "python -m benchmarks " + " ".join(sys.argv[1:])
    name = options.name or f"{options.benchmark}-{options.profile}"
    write_json(REPORTS / f"{name}.json", results)
    print("\n".join(summary(name, results)))
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: no figure.", file=sys.stderr)
    elif options.benchmark == "pipeline":
        save_start_up(REPORTS / f"{name}.png", results)
    else:
        save_figure(REPORTS / f"{name}.png", options.benchmark, results)
    print(f"results: {REPORTS / name}.json")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
