"""`python -m benchmarks align|sample|tokenize|score|pipeline --profile NAME`, `python -m benchmarks gpu`: see
docs/speed.md.

Results go to reports/benchmarks/NAME.json and, where matplotlib is installed, NAME.png. `--quick` makes everything
small, measures no time and only checks that both sides give the same: exit code 1 if they do not.
"""

import importlib
import importlib.util
import sys

import torch

from benchmarks.figures import save_figure, save_start_up
from benchmarks.measure import Results
from benchmarks.options import REPORTS, parse
from benchmarks.summary import summary
from vapi_core.errors import VapiError
from vapi_core.files import write_json

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


def main() -> int:
    options = parse()
    try:
        if options.benchmark == "gpu":
            from benchmarks.gpu.run import run

            return run(options)
        if options.threads:
            torch.set_num_threads(options.threads)
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
