"""Writes the plans of params.yaml, in reports. Commit them before you run.

Committed plans name `python -m pipelines.commands.plan`, which is `vapi plan`.
"""

import sys

from pipelines.config.loading import load_params
from pipelines.messages import one_message
from pipelines.reporting.plan import plan_texts
from vapi_core.files import atomic_path


def plan() -> None:
    """Writes them."""
    for file, text in plan_texts(load_params()).items():
        with atomic_path(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"{file}: commit it before you run.")


if __name__ == "__main__":
    sys.exit(one_message(plan)())
