"""All numbers of one table: scores of its rows, their means, the tested claims, GenEval by task, and what it cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from pipelines.config.params import Params
from pipelines.config.paths import STAGE_METRICS
from pipelines.config.variant import BASE, SUBJECT, Variant, variants_of
from pipelines.reporting.statistics import blind_extractors, compare, match_temperatures, summarize, summarize_tasks
from pipelines.reporting.tables import Table
from pipelines.variants.score_files import GENEVAL_TABLE, SCORES_TABLE, overall_scores, read_table, whole_alignments
from vapi_core.files import read_json

GENEVAL = "geneval"  # the extractor of GenEval's overall score
REFERENCES_STAGE = "references"


@dataclass(frozen=True)
class Evidence:
    """What a page is made of. All tables are against the main reference."""

    table: Table
    params: Params
    variants: list[Variant]
    sets: pd.DataFrame  # one row per set, whole or on its way, and extractor
    summary: pd.DataFrame
    comparisons: pd.DataFrame
    matches: pd.DataFrame  # the base's temperature of equal precision, for every aligned row
    tasks: pd.DataFrame | None  # GenEval by task
    blind: dict[str, tuple[float, float]]  # extractors that see the tokenizer only
    stages: dict[str, dict[str, float]]  # metrics of this profile's stages

    @property
    def guidance(self) -> float:
        """The guidance scale of the main question."""
        return main_guidance(self.params)

    @property
    def reconstructions(self) -> dict[str, float]:
        """Extractor -> FID of held-out images that were only encoded and decoded."""
        return reconstruction_fid(self.stages)


def main_guidance(params: Params) -> float:
    """None (1) where that is drawn, else the first."""
    scales = params.sample.guidance_scales
    return 1.0 if 1.0 in scales else scales[0]


def reconstruction_fid(stages: dict[str, dict[str, float]]) -> dict[str, float]:
    found, prefix = stages.get(REFERENCES_STAGE, {}), "reconstruction_fid "
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


def gather(table: Table, params: Params) -> Evidence:
    """Reads the scores of a table's rows, and tests its claims. Raises FileError where one is missing or damaged."""
    variants = unique_rows(table, params)
    sets = read_sets(table, variants, params)
    whole = whole_alignments(sets)
    stages = read_stages(params, variants)
    summary = summarize(whole)
    guidance = main_guidance(params)
    # The FID against a published batch (ADM) does not compare with the reconstruction FID of our references.
    own_references = params.score.reference_batch is None
    blind = blind_extractors(summary, BASE, guidance, reconstruction_fid(stages)) if own_references else {}
    seen = whole[~whole["extractor"].isin(blind)]
    rows = list(dict.fromkeys(whole["row"]))
    main = (table.scores[0], guidance) if table.ordered else None
    comparisons = compare(seen, table.claims(rows), (*table.scores, *table.others), main)
    tasks = None
    if params.score.geneval is not None:
        tasks = summarize_tasks(read_judged(table, variants, params))
    matches = match_temperatures(summary, BASE, params.sample.temperature) if "precision" in summary else pd.DataFrame()
    return Evidence(table, params, variants, sets, summary, comparisons, matches, tasks, blind, stages)


def unique_rows(table: Table, params: Params) -> list[Variant]:
    """The controls of a table, and of variants with the same settings one, the subject if it is among them."""
    variants = variants_of(params, *table.rows)
    found: dict[str, Variant] = {}
    for variant in sorted((v for v in variants if v.alignment is not None), key=lambda v: v.name != SUBJECT):
        found.setdefault(table.row(variant, variant.samplings[0].temperature, params.sample.temperature), variant)
    return [variant for variant in variants if variant.alignment is None or variant in found.values()]


def read_sets(table: Table, variants: Sequence[Variant], params: Params) -> pd.DataFrame:
    """Scores of all sets against the main reference, each with its row's name; GenEval's overall score among them."""
    parts = []
    for variant in variants:
        scores = read_table(variant.scores / SCORES_TABLE)
        parts.append(scores[scores["reference"] == params.score.references[0]])
        if params.score.geneval is not None:
            judged = read_table(variant.scores / GENEVAL_TABLE)
            overall = overall_scores(judged)
            parts.append(overall.assign(extractor=GENEVAL, reference=params.score.references[0]))
    return with_rows(pd.concat(parts, ignore_index=True), table, variants, params)


def read_judged(table: Table, variants: Sequence[Variant], params: Params) -> pd.DataFrame:
    """GenEval's decisions over all prompts, each with the name of its row."""
    parts = [read_table(variant.scores / GENEVAL_TABLE) for variant in variants]
    return with_rows(pd.concat(parts, ignore_index=True), table, variants, params)


def with_rows(sets: pd.DataFrame, table: Table, variants: Sequence[Variant], params: Params) -> pd.DataFrame:
    """The sets with a column `row`."""
    by_name, main = {variant.name: variant for variant in variants}, params.sample.temperature
    rows = [table.row(by_name[v], t, main) for v, t in zip(sets["variant"], sets["temperature"], strict=True)]
    return sets.assign(row=rows)


def read_stages(params: Params, variants: Sequence[Variant]) -> dict[str, dict[str, float]]:
    """Metrics of the stages behind a table, as far as they are of this profile."""
    classifiers = [f"classifier@{role}" for role in ("reward", "scorer", "uci")]
    first = ["subset", *classifiers, "tokenizer", "tokenize", "generator", REFERENCES_STAGE]
    names = first + [
        variant.stage(kind)
        for variant in variants
        for kind in ("align", "sample", "score")
        if kind != "align" or variant.alignment is not None
    ]
    paths = {name: STAGE_METRICS / f"{name}.json" for name in names}
    return {name: read_json(path) for name, path in paths.items() if path.is_file()}
