"""Where each stage puts what it makes. The same names stand in dvc.yaml."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.params import Params

SUBSET = Path("data/subset")
CLASSIFIERS = Path("data/classifiers")
TOKENIZER = Path("data/tokenizer")
TOKENS = Path("data/tokens")
GENERATOR = Path("data/generator")
ALIGNED = Path("data/aligned")
SAMPLES = Path("data/samples")
REPORTS = Path("reports")
RIVAL_SAMPLES = Path("data/rivals")  # not below SAMPLES: `score` builds on all of that, and should not wait for rivals
RIVAL_REPORTS = REPORTS / "rivals"
ABLATIONS = Path("data/ablations")
ABLATION_REPORTS = REPORTS / "ablations"
STAGE_METRICS = REPORTS / "stages"
CURVES = REPORTS / "curves"
SCORES = REPORTS / "scores"


def _repository() -> Path:
    """The repository that work belongs to. An experiment of `dvc exp run --temp` or `--queue` runs in a temporary copy without
    assets, which goes with all that is in it; DVC tells its stages of which repository, and sweeps do so too."""
    if named := os.environ.get("VAPI_REPOSITORY"):
        return Path(named)
    root = Path(os.environ.get("DVC_ROOT", "")).resolve()
    return root if Path.cwd().resolve().is_relative_to(root / ".dvc/tmp/exps") else Path()


REPOSITORY = _repository()
# what may be lost: checkpoints to resume from, the metrics journal, cached features; all experiments share it
WORK = Path(os.environ.get("VAPI_WORK", REPOSITORY / ".work"))
# of WORK, what only one experiment at a time can use: files named by their stage, not by what is in them
OWN_WORK = WORK if Path() == REPOSITORY else WORK / "experiments" / os.environ.get("DVC_EXP_NAME", "")

RUN_FILE = "run.json"
PROMPTS = SUBSET / "prompts.jsonl"  # t2i: what is sampled and scored
CAPTIONS = TOKENS / "captions"  # t2i: text features of all captions and prompts
BASE = "base"  # the model before any alignment


def aligned(method: str, seed: int) -> Path:
    """Directory of the generator aligned with one method and seed."""
    return ALIGNED / method / str(seed)


def after_steps(method: str, seed: int, steps: int) -> Path:
    """Directory of what an alignment had after so many steps; kept every `align.keep_every`."""
    return aligned(method, seed) / "steps" / str(steps)


def is_rival(params: "Params", model: str) -> bool:
    """Whether a method, or another model that is sampled, belongs to the table of rivals only."""
    return model != BASE and model not in params.align.methods


def reports_of(params: "Params", model: str) -> Path:
    """Folder under which the stages of a model keep their metrics and curves."""
    return RIVAL_REPORTS if is_rival(params, model) else REPORTS


def remedy(output: Path) -> str:
    """What an error message says of a stage's output, or of a folder in it: the command that makes it anew."""
    return f"To make it anew, run `dvc repro {_target(output)}`."


def _target(output: Path) -> str:
    """What `dvc repro` calls the stage of an output."""
    if output.is_relative_to(REPORTS):
        return "rival-score" if output.is_relative_to(RIVAL_REPORTS) else "score"
    kind, *rest = output.relative_to("data").parts
    model = rest[0] if rest else ""
    if kind == "aligned":
        return f"--glob '*align@{model}-{rest[1]}'"  # a method of the experiment, or a rival
    if kind == "samples":
        return "sample-base" if model == BASE else f"sample@{model}"
    if kind == "rivals":
        return f"rival-{model}" if model in ("temperatures", "steps") else f"rival-sample@{model}"
    if kind == "ablations":
        stage = {BASE: "cell-base", "va-pi": "cell"}.get(model, f"ablation-{model}-cell")
        return f"{stage}@{'-'.join(rest[1:])}"
    return {"classifiers": f"classifier@{model}", "tokens": "tokenize"}.get(kind, kind)
