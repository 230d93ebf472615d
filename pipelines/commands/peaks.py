"""The computed peak of memory of every alignment and set: `vapi peaks`."""

from collections.abc import Iterator, Sequence

from pipelines.config.loading import check_params
from pipelines.config.params import Params
from pipelines.config.profiles import read_profile
from pipelines.config.variant import EXPERIMENT, RIVALS, variants_of
from pipelines.estimates.peaks import CUDA_RESERVE, Peak, align_peak, is_computable, sample_peak
from pipelines.reporting.markdown import markdown_table

HOLDERS = ("weights", "weights in bfloat16", "gradients", "moments", "frozen networks", "KV cache", "activations")


def peaks(profiles: Sequence[str], memory: float = 80) -> None:
    """Prints one table of all profiles; nothing is allocated.

    Args:
        profiles: names of files in profiles/.
        memory: of the GPU, in GB of 10^9 bytes.
    """
    limit = round(memory * 1e9)
    rows = [row for name in profiles for row in peaks_of(check_params(read_profile(name)), limit)]
    print(markdown_table(["profile", "stage", *HOLDERS, "peak, GB"], rows))
    print(f"\nBeside these, {CUDA_RESERVE / 1e9:g} GB are allowed for CUDA's context and libraries.")


def peaks_of(params: Params, memory: int) -> Iterator[list[str]]:
    """A row for each alignment of the report's and the rivals' tables, and one for VA-π's image sets."""
    aligned = [variant for variant in variants_of(params, EXPERIMENT, RIVALS) if variant.alignment is not None]
    for variant in aligned:
        stage = variant.stage("align")
        if is_computable(params, variant.name):
            yield row(params.profile, stage, align_peak(params, variant.name, memory))
        else:
            yield [params.profile, stage, *("" for _ in HOLDERS), "not computed"]
    yield row(params.profile, aligned[0].stage("sample"), sample_peak(params, aligned[0].name, memory))


def row(profile: str, stage: str, peak: Peak) -> list[str]:
    sizes = [peak.parts.get(holder, 0) for holder in HOLDERS]
    return [profile, stage, *(f"{size / 1e9:.1f}" if size else "" for size in sizes), f"{peak.total / 1e9:.1f}"]
