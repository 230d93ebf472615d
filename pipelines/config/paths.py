"""The kinds of stages, and where each puts what it makes. The same names stand in dvc.yaml."""

import os
from pathlib import Path

STAGES = (  # in the order of the graph; `table` makes the report too
    "subset",
    "classifier",
    "tokenizer",
    "tokenize",
    "generator",
    "references",
    "align",
    "sample",
    "score",
    "table",
)
SUBSET = Path("data/subset")
CLASSIFIERS = Path("data/classifiers")
TOKENIZER = Path("data/tokenizer")
TOKENS = Path("data/tokens")
GENERATOR = Path("data/generator")
REFERENCES = Path("data/references")
ALIGNED = Path("data/aligned")  # VARIANT/SEED
SAMPLES = Path("data/samples")  # TABLE/VARIANT/SET
SHARED = (SUBSET, CLASSIFIERS, TOKENIZER, TOKENS, GENERATOR, REFERENCES)  # what the cells of a sweep build on
REPORTS = Path("reports")
SCORES = REPORTS / "scores"  # TABLE/VARIANT
STAGE_METRICS = REPORTS / "stages"
CURVES = REPORTS / "curves"
FIGURES = REPORTS / "figures"
TABLES = REPORTS / "tables"


def _repository() -> Path:
    """The repository that work belongs to. An experiment of `dvc exp run --temp` or `--queue` runs in a temporary copy
    without assets, which goes with all that is in it; DVC tells its stages of which repository, and sweeps do so
    too."""
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


def remedy(output: Path) -> str:
    """What an error message says of a stage's output, or of a folder in it: the command that makes it anew."""
    return f"To make it anew, run `dvc repro {_target(output)}`."


def _target(output: Path) -> str:
    """What `dvc repro` calls the stage of an output."""
    if output.is_relative_to(SCORES):
        return f"--glob 'score*@{output.relative_to(SCORES).parts[1]}'"  # of an alignment or of a control
    kind, *rest = output.relative_to("data").parts
    name = rest[0] if rest else ""
    if kind == "aligned":
        return f"align@{name}"
    if kind == "samples":
        return f"--glob 'sample*@{rest[1]}'"  # of an alignment or of a control
    return {"classifiers": f"classifier@{name}", "tokens": "tokenize"}.get(kind, kind)
