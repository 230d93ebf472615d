"""A repository with the pipeline's shape and none of its work: the flows' tests look at how stages run.

The stages of its dvc.yaml run this file. A stage waits while VAPI_WORK has a file `hold-STAGE`, or `hold-RATIO` for its
noise ratio; with `fail-RATIO` it fails, with `spoil-RATIO` its scores cannot be read. What began and ended is told in
`stages.log` there.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
NOISE = 0.1  # noise ratio of its params.yaml, whatever ours has
WORK = ".work"
STAGES = """
stages:
  subset: {cmd: python toy.py data/subset, deps: [toy.py], params: [profile], outs: [data/subset]}
  classifier:
    matrix: {role: [reward, scorer]}
    cmd: python toy.py data/classifiers/${item.role}
    deps: [data/subset]
    outs: ["data/classifiers/${item.role}"]
  tokenize: {cmd: python toy.py data/tokens, deps: [data/subset], outs: [data/tokens]}
  generator: {cmd: python toy.py data/generator, deps: [data/tokens], outs: [data/generator]}
  score-control:
    foreach: ${controls}
    do:
      cmd: python toy.py data/scored/${key}
      deps: [data/generator, data/classifiers]
      params: [align.seeds]
      outs: ["data/scored/${key}"]
  score:
    foreach: ${variants}
    do:
      cmd: python toy.py reports/scores/${item.table}/${key} ${key}
      deps: [data/generator, data/classifiers]
      params: [align, "variants.${key}"]
      plots: ["reports/scores/${item.table}/${key}": {cache: false}]
  report: {cmd: python toy.py reports/report.md, deps: [data/generator, data/classifiers], outs: [reports/report.md: {cache: false}]}
"""


def make_toy(path: Path) -> None:
    """Makes the repository in an empty folder: our code and params with the stages above, and one git commit."""
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "params.yaml", "prefect.yaml"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, path / name)
    for name in ("pipelines", "vapi_core", "profiles"):
        shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
    params = yaml.safe_load((path / "params.yaml").read_text())
    params["align"]["noise_ratio"] = NOISE
    params |= {"variants": {"va-pi": params["variants"]["va-pi"]}, "tables": []}
    (path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (path / "dvc.yaml").write_text(STAGES)
    shutil.copy(__file__, path / "toy.py")
    for command in ("init -q", "add -A", "-c user.name=toy -c user.email=toy@example.com commit -qm toy"):
        subprocess.run(["git", *command.split()], cwd=path, check=True)


def work() -> Path:
    return Path(os.environ["VAPI_WORK"])


def tell(event: str, noise: float) -> None:
    with (work() / "stages.log").open("a") as file:
        file.write(f"{event} {os.environ['DVC_STAGE']} {noise}\n")


def variant_of(noise: float) -> str:
    """The variant of a sweep's cell of this noise ratio, all else as the form opens."""
    return f"noise{f'{noise:g}'.replace('.', '_')}-ce0_1-mse_perceptual"


def main() -> None:
    output, *variant = sys.argv[1:]
    params = yaml.safe_load(Path("params.yaml").read_text())
    settings = params["align"] | (params["variants"][variant[0]]["align"] if variant else {})
    noise = settings["noise_ratio"]
    tell("began", noise)
    while any((work() / f"hold-{name}").exists() for name in (noise, os.environ["DVC_STAGE"])):
        time.sleep(0.02)
    if (work() / f"fail-{noise}").exists():
        sys.exit("this cell was told to fail")
    if variant:
        Path(output).mkdir(parents=True, exist_ok=True)
        spoilt = (work() / f"spoil-{noise}").exists()
        Path(output, "scores.csv").write_text("spoilt" if spoilt else scores(variant[0], params, 10 - noise))
    else:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text("made")
    tell("ended", noise)


def scores(variant: str, params: dict, fid: float) -> str:
    """A table of scores, the same for every seed."""
    lines = ["variant,steps,seed,temperature,guidance_scale,extractor,reference,fid"]
    temperature, reference = params["sample"]["temperature"], params["score"]["reference_splits"][0]
    judged = f"{temperature},1.0,{params['score']['extractors'][-1]},{reference},{fid:.6g}"
    lines += [f"{variant},,{seed},{judged}" for seed in params["align"]["seeds"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
