"""The plan of a profile: what will be compared with what, in which order, on which seeds and how many images.

It is made from params.yaml and the tables' records alone. Committed before a run, it shows that none of this was chosen
when results were known. A page says by which commit, or that what it compares was not planned. A table that came later
has a plan of its own, so that the profile's keeps its commit.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.config.params import Params, checked
from pipelines.config.paths import REPORTS
from pipelines.config.profiles import differences
from pipelines.reporting.evidence import main_guidance, unique_rows
from pipelines.reporting.markdown import counted, item, prose
from pipelines.reporting.rule import RULE, own_rule
from pipelines.reporting.settings import alignment_rows
from pipelines.reporting.tables import TABLES, Table
from pipelines.repository.git import git
from pipelines.variants.score_files import SCORE_TITLES
from vapi_core.errors import FileError, ParameterError

PLAN = REPORTS / "plan.md"
LATER = REPORTS / "plans"  # of tables that were added when a profile's other results were known
COMMAND = "python -m pipelines.commands.plan"
HOW = "How verdicts are reached"
AFTERWARDS = "This plan was made after the profile's. Rows that other tables have too may have been scored before it."


def plan_file(table: Table) -> Path:
    """The plan in which a table stands."""
    return LATER / f"{table.name}.md" if table.later else PLAN


def plan_texts(params: Params) -> dict[Path, str]:
    """The plans as Markdown, by their files."""
    tables = [TABLES[name] for name in ("report", *params.tables) if name in TABLES]
    files = dict.fromkeys(map(plan_file, tables))
    return {file: plan_text(params, [table for table in tables if plan_file(table) == file]) for file in files}


def plan_text(params: Params, tables: Sequence[Table]) -> str:
    """The plan of these tables."""
    parts = [
        f"# Plan, profile `{params.profile}`",
        prose(
            f"`{COMMAND}` writes this page from params.yaml and `pipelines/reporting/tables.py`.",
            "It is committed before the run that it plans.",
        ),
        "\n".join(item(line) for line in _common(params)),
        *([AFTERWARDS] if any(table.later for table in tables) else []),
        f"## {HOW}",
        "\n".join(item(line) for line in RULE),
        *(part for table in tables for part in _section(table, params)),
    ]
    return "\n\n".join(parts) + "\n"


def _common(params: Params) -> Iterator[str]:
    """What all tables share."""
    seeds = params.align.seeds
    yield f"{counted(len(seeds), 'seed')} of every alignment: {', '.join(map(str, seeds))}."
    yield (
        f"{counted(params.sample.count, 'image')} of every set{' and prompt' if params.task == 't2i' else ''}, "
        f"from the streams {params.sample.seed} and the alignment's seed added."
    )
    yield (
        f"Seeds of what is behind them: subset {params.subset.seed}, tokenizer {params.tokenizer.seed}, generator "
        f"{params.generator.seed}."
    )
    yield f"Extractors: {', '.join(params.score.extractors)}. The last one is the main one."
    yield "An extractor that sees the tokenizer only is not asked; how that is found out stands in the report."


def _section(table: Table, params: Params) -> Iterator[str]:
    rows = rows_of(table, params)
    variants = [v for v in unique_rows(table, params) if v.alignment is not None]
    yield f"## {table.title}"
    yield prose(f"Rows: {', '.join(rows)}.")
    yield "\n".join(item(f"{name}: {settings or 'nothing else'}") for name, settings in alignment_rows(variants))
    scores = ", ".join(SCORE_TITLES[score] for score in (*table.scores, *table.others))
    yield prose(
        *own_rule(table, main_guidance(params)), f"Claims, in this order, about {scores}, as far as a set has them:"
    )
    yield "\n".join(f"{number}. {claim.text}" for number, claim in enumerate(table.claims(rows), 1))


def rows_of(table: Table, params: Params) -> list[str]:
    """Names of a table's rows, in the order of the page."""
    main = params.sample.temperature
    names = [table.row(v, config.temperature, main) for v in unique_rows(table, params) for config in v.samplings]
    return list(dict.fromkeys(names))


def plan_sentence(params: Params, table: Table, root: Path = Path()) -> str:
    """What a page says of its plan: by which commit it was made, or that the page is of something else.

    The plan of a page is what all tables share and its own section. What no plan names is to be as params.yaml had it
    in the plan's commit; of variants and controls the rows of the table count. A parameter that is newer than the plan
    had its default then.
    """
    file = plan_file(table)
    planned = (root / file).read_text(encoding="utf-8") if (root / file).is_file() else ""
    if _of_table(planned, table) != _of_table(plan_text(params, [table]), table):
        return f"**Not planned:** `{file}` is not of these params. So what follows explores. `{COMMAND}` writes a plan."
    try:
        commit, _, date = (
            git(root, "log", "-1", "--format=%h %cd", "--date=format:%Y-%m-%d %H:%M", "--", str(file))
            .strip()
            .partition(" ")
        )
        changed = git(root, "status", "--porcelain", "--", str(file)).strip()
        before = yaml.safe_load(git(root, "show", f"{commit}:params.yaml")) if commit else None
    except FileError:
        commit, before, changed = "", None, ""
    if not commit or changed or before is None:
        return f"**Planned, but the plan is not committed:** `{file}`."
    try:
        then = checked(Params, before)
    except ParameterError:
        return f"**Not planned:** since its plan, commit {commit}, the names of parameters have changed."
    if other := sorted(differences(_behind(then, table, params), _behind(params, table, params))):
        return f"**Not planned:** since its plan, commit {commit}, params.yaml has changed in {', '.join(other)}."
    link = file.relative_to(REPORTS)
    return f"Planned in [{link}]({link}), last changed by commit {commit}, {date}."


def _of_table(text: str, table: Table) -> list[str]:
    """The parts of a plan that bear on a table: those before all tables, and its own."""
    common, *sections = text.split("\n## ")
    return [common, *(part for part in sections if part.startswith((HOW, f"{table.title}\n")))]


def _behind(content: Params, table: Table, params: Params) -> dict[str, Any]:
    """The parameters that a table comes from; not the device, what MLflow shows, nor which tables there are."""
    rows = {variant.name for variant in unique_rows(table, params)}
    kept = content.model_dump(mode="json", exclude={"device": True, "tables": True, "align": {"images_every"}})
    for group in ("variants", "controls"):
        kept[group] = {name: value for name, value in kept[group].items() if name in rows}
    return kept
