"""Where each stage puts what it makes. The same names stand in dvc.yaml."""

from pathlib import Path

SUBSET = Path("data/subset")
CLASSIFIERS = Path("data/classifiers")
TOKENIZER = Path("data/tokenizer")
TOKENS = Path("data/tokens")
GENERATOR = Path("data/generator")
ALIGNED = Path("data/aligned")
SAMPLES = Path("data/samples")
REPORTS = Path("reports")
STAGE_METRICS = REPORTS / "stages"
CURVES = REPORTS / "curves"
SCORES = REPORTS / "scores"
WORK = Path(".work")  # what may be lost: checkpoints to resume from, the metrics journal, cached features

RUN_FILE = "run.json"


def aligned(method: str, seed: int) -> Path:
    """Directory of the generator aligned with one method and seed."""
    return ALIGNED / method / str(seed)
