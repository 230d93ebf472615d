"""What a profile needs, before any work: `vapi estimate`."""

from pathlib import Path

from pipelines.commands.assets import params_of
from pipelines.estimates.estimate import estimate as estimate_stages
from pipelines.estimates.estimate import memory_peaks
from pipelines.estimates.rates import EPYC, GPUS, measure_cpu
from pipelines.reporting.estimates import comparison, page
from pipelines.repository.cache import keeps_copies
from vapi_core.errors import ParameterError, quoted


def estimate(profile: str | None = None, gpu: str = "cpu", measure: bool = False, beside: Path | None = None) -> None:
    """Prints time, memory and disk of every stage.

    Args:
        profile: name of a file in profiles/; without one, params.yaml.
        gpu: the machine, cpu or a GPU.
        measure: measure the CPU's rates here, which takes ten seconds.
        beside: a folder of what stages measured of themselves, to compare with.

    Raises:
        ParameterError: there is no such machine, or its rates cannot be measured here.
    """
    known = {"cpu": EPYC, **GPUS}
    if gpu not in known:
        raise ParameterError("--gpu", f"there is no {quoted(gpu)}; there are {', '.join(known)}.")
    if measure and gpu != "cpu":
        raise ParameterError("--measure", "it is of the CPU: --gpu cpu.")
    params = params_of(profile)
    rates = measure_cpu(params.threads) if measure else known[gpu]
    rows = estimate_stages(params, rates)
    if beside is not None:
        print(comparison(rows, beside))
    else:
        print(page(params, rows, rates, keeps_copies(), memory_peaks(params, rates.memory)))
