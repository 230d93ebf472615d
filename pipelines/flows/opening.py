"""A step of prefect.yaml: what the form of a sweep comes to as it opens, for the text of its deployment."""

from pipelines.reporting.sweep_plan import size_text
from pipelines.variants.sweep import plan_cells, read_baseline
from pipelines.variants.sweep_form import opening_form
from vapi_core.errors import VapiError


def size() -> dict[str, str]:
    """The number of cells and their time on this machine, under `size`."""
    form = opening_form()
    try:
        baseline = read_baseline(form.profile)
        return {"size": size_text(form, baseline, plan_cells(form, baseline, {}))}
    except VapiError as error:  # which a run tells too; the deployment is there all the same
        return {"size": f"its size is not known: {error}"}
