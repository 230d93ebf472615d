"""Stages `report` and `table@NAME`: the page of one table, its numbers and its pictures."""

import argparse

from pipelines.config.params import Params
from pipelines.config.paths import REFERENCES, REPORTS, RUN_FILE, TABLES, remedy
from pipelines.config.variant import variants_of
from pipelines.frame.stage import Stage, StagePlan, run_stage
from pipelines.reporting import tables
from pipelines.reporting.evidence import Evidence, gather
from pipelines.reporting.pages import page, target
from pipelines.reporting.pictures import draw_pictures
from pipelines.reporting.plan import plan_sentence
from pipelines.reporting.statistics import nested
from pipelines.variants.scoring import PROTOCOL
from vapi_core.files import atomic_path, read_json, read_texts, write_json


def plan(params: Params, arguments: argparse.Namespace) -> StagePlan:
    table = tables.TABLES[arguments.table]
    upstream = tuple(variant.scores for variant in variants_of(params, *table.rows))
    return StagePlan(target(table), None, {"table": table.name}, upstream)


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    table = tables.TABLES[arguments.table]
    evidence = gather(table, stage.params)
    write_numbers(evidence)
    pictures = draw_pictures(evidence, stage.device)
    path = REPORTS / f"{table.name}.md"
    text = page(evidence, read_json(PROTOCOL, remedy(REFERENCES)), plan_sentence(stage.params, table))
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    for file in (path, *pictures):
        stage.run.artifact(file)
    stage.run.adopt(keys_of_runs(evidence))
    stage.metrics["rows"] = len(evidence.variants)


def keys_of_runs(evidence: Evidence) -> list[str]:
    """Keys of the alignments that were made for this table alone: its runs are their parents in MLflow."""
    own = [v for v in evidence.variants if v.table == evidence.table.name and v.alignment is not None]
    return [
        read_texts(v.output(seed) / RUN_FILE, ["key"], remedy(v.output(seed)))["key"] for v in own for seed in v.seeds
    ]


def write_numbers(evidence: Evidence) -> None:
    """The page's numbers as CSV, and of the report the means as metrics too, for `dvc metrics diff`."""
    table = evidence.table
    numbers = {"summary": evidence.summary, "comparisons": evidence.comparisons, "temperatures": evidence.matches}
    if evidence.tasks is not None:
        numbers["tasks"] = evidence.tasks
    with atomic_path(TABLES / table.name) as temporary:
        temporary.mkdir()
        for name, content in numbers.items():
            content.to_csv(temporary / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    if table.name == "report":
        write_json(REPORTS / "metrics.json", nested(evidence.summary))


def main(arguments: list[str]) -> int:
    """Runs the stage; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.stages table")
    parser.add_argument("table", choices=tables.TABLES)
    return run_stage(plan, work, parser.parse_args(arguments))
