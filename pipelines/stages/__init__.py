"""The stages of the DVC graph, each a command: `python -m pipelines.stages.NAME`."""

import sys

from pipelines.processes import end_with_dvc
from pipelines.uploader import start_early

if sys.argv[0] == "-m":  # so Python calls a command while it looks for its module; not when a stage is only imported
    end_with_dvc()
    start_early()
