"""A step of prefect.yaml: the form of a sweep as it opens, and what it comes to, for the text of the deployment.

The flow itself has no form of its own: Prefect would call it optional. A run that is given none, on a schedule say, has
the deployment's.
"""

from typing import Any

from pipelines.reporting.sweep_plan import size_text
from pipelines.variants.sweep import plan_cells, read_baseline
from pipelines.variants.sweep_form import opening_form
from vapi_core.errors import VapiError


def opened() -> dict[str, Any]:
    """The form, and under `size` the number of its cells and their time on this machine."""
    form = opening_form()
    try:
        baseline = read_baseline(form.profile)
        size = size_text(form, baseline, plan_cells(form, baseline, {}))
    except VapiError as error:  # which a run tells too; the deployment is there all the same
        size = f"its size is not known: {error}"
    return {"form": form.model_dump(), "size": size}
