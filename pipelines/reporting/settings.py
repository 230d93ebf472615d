"""What stands behind a table's numbers: data, models and settings, and what each stage cost."""

from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.config.variant import Variant
from pipelines.reporting.evidence import Evidence
from pipelines.reporting.markdown import markdown_table

LEFT_OUT = ("method", "checkpoint_every", "log_kl_every")  # named otherwise, or of no influence


def settings_table(evidence: Evidence) -> str:
    """A row for each part of the run; of alignments what all share, what a method's share, and each one's own."""
    rows = [*model_rows(evidence), *alignment_rows([v for v in evidence.variants if v.alignment is not None])]
    return markdown_table(["what", "settings"], rows)


def model_rows(evidence: Evidence) -> Iterator[tuple[str, str]]:
    params, stages = evidence.params, evidence.stages
    tokenizer, generator = stages.get("tokenizer", {}), stages.get("generator", {})
    s, t, held_out = params.subset, params.tokenizer, params.score.reference_splits[0]
    splits = ", ".join(f"{count:,} {name}" for name, count in s.splits.items())
    yield "images", f"`{s.source}`, {s.image_size} pixels: {splits}"
    about = [f"codebook {t.codebook_size} x {t.codebook_dim}"]
    if "codebook_usage" in tokenizer:
        about.append(f"{tokenizer['codebook_usage']:.0%} of it used")
    if "reconstruction_mse" in tokenizer:
        about.append(f"reconstruction MSE {tokenizer['reconstruction_mse']:.4f} on `{held_out}`")
    yield "tokenizer", ", ".join(about)
    about = [f"family {params.generator.family}"]
    if "parameters" in generator:
        about.append(f"{generator['parameters'] / 1e6:.2f} M parameters")
    if f"cross_entropy_{held_out}" in generator:
        about.append(f"{generator[f'cross_entropy_{held_out}']:.3f} nats a token on `{held_out}`")
    yield "generator", ", ".join(about)


def alignment_rows(variants: Sequence[Variant]) -> Iterator[tuple[str, str]]:
    settings = {v.name: dict(told(v.alignment.settings)) for v in variants if v.alignment is not None}
    shared = common(list(settings.values()))
    if shared:
        yield "all alignments", listed(shared)
    by_method: dict[str, list[str]] = {}
    for variant in variants:
        assert variant.alignment is not None
        by_method.setdefault(variant.alignment.name, []).append(variant.name)
    for method, names in by_method.items():
        of_method = common([settings[name] for name in names])
        if len(names) > 1:
            yield f"all of method {method}", listed(without(of_method, shared))
            shared_here = shared | of_method
        else:
            shared_here = shared
        for name in names:
            own = {"method": method} if len(names) == 1 and name != method else {}
            yield name, listed(own | without(settings[name], shared_here)) or "nothing else"


def told(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of every setting that says something; weights of terms as one sum, None and the method left out."""
    for name, value in settings.items():
        if isinstance(value, dict):
            numbers = {term: v for term, v in value.items() if isinstance(v, int | float) and v}
            yield name, " + ".join(f"{weight:g} {term}" for term, weight in numbers.items()) or "none"
        elif isinstance(value, tuple):
            yield name, f"({', '.join(f'{v:g}' for v in value)})"
        elif value is not None and name not in LEFT_OUT:
            yield name, f"{value:g}" if isinstance(value, float) else str(value)


def common(settings: Sequence[dict[str, str]]) -> dict[str, str]:
    """What all have, and have alike."""
    first = settings[0] if settings else {}
    return {name: text for name, text in first.items() if all(other.get(name) == text for other in settings)}


def without(settings: dict[str, str], known: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in settings.items() if name not in known}


def listed(settings: dict[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in settings.items())


def cost_table(stages: dict[str, dict[str, float]]) -> str:
    rows = [
        [
            name,
            f"{m['seconds']:,.0f}",
            f"{m['peak_memory_mb']:,.0f}",
            f"{m['images_per_second']:.4g}" if "images_per_second" in m else "",
            f"{m['flops_per_image'] / 1e9:.3g}" if "flops_per_image" in m else "",
        ]
        for name, m in stages.items()
    ]
    header = ["stage", "seconds", "peak memory, MB", "images/s", "GFLOPs an image"]
    total = sum(m["seconds"] for m in stages.values())
    return markdown_table(header, [*rows, ["all", f"{total:,.0f}", "", "", ""]])
