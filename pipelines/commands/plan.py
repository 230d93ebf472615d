"""Writes the plan of params.yaml, reports/plan.md. Commit it before you run.

Committed plans name `python -m pipelines.commands.plan`, which is `vapi plan`.
"""

import sys

from pipelines.frame.launch import one_message
from pipelines.reporting.plan import PLAN, plan_text
from pipelines.variants.loading import load_params
from vapi_core.files import atomic_path


def plan() -> None:
    """Writes it."""
    text = plan_text(load_params())
    with atomic_path(PLAN) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{PLAN}: commit it before you run.")


if __name__ == "__main__":
    sys.exit(one_message(plan)())
