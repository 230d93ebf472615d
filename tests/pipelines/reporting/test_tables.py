"""A table is its record and its variants: rows, claims and the paper's numbers fit together."""

import re

import pytest

from pipelines.config.profiles import read_profile
from pipelines.config.variant import BASE, SUBJECT, find_variant, variants_of
from pipelines.reporting.evidence import gather, unique_rows
from pipelines.reporting.pages import page
from pipelines.reporting.statistics import Claim
from pipelines.reporting.tables import TABLES, Axis, Table, subject_against_all
from tests.pipelines.reporting.workspace import FID, NO_PROTOCOL, params_with, write_run


@pytest.fixture(scope="module")
def params():
    return params_with()


def rows_of(table, params):
    return [table.row(v, v.samplings[0].temperature, params.sample.temperature) for v in unique_rows(table, params)]


@pytest.mark.parametrize("name", ["noise", "regularizer", "reward"])
def test_the_default_profile_has_a_row_for_all_that_the_paper_and_the_claims_have(name, params):
    table = TABLES[name]
    rows = rows_of(table, params)
    assert set(table.paper) <= set(rows) and len(set(rows)) == len(rows)
    claims = table.claims(rows)
    assert {row for claim in claims for row in (claim.better, claim.worse)} <= set(rows)
    assert len({claim.text for claim in claims}) == len(claims) > 5


def test_every_table_of_the_default_profile_has_a_record():
    assert {"report", *read_profile("mnist")["tables"]} == set(TABLES)


def test_the_subject_stands_where_its_settings_do_and_is_shown_once(params):
    subject = find_variant(params, SUBJECT)
    assert TABLES["noise"].row(subject, 1.0, 1.0) == "0.5"
    assert TABLES["regularizer"].row(subject, 1.0, 1.0) == "ce-0.1"
    assert TABLES["reward"].row(subject, 1.0, 1.0) == "all"
    assert TABLES["report"].row(subject, 1.0, 1.0) == SUBJECT
    doubled = params_with(variants={"noise-0_5": {"table": "noise", "method": "va-pi", "align": {}}})
    names = [variant.name for variant in unique_rows(TABLES["noise"], doubled)]
    assert SUBJECT in names and "noise-0_5" not in names


def test_a_row_of_the_table_of_credit_is_named_by_its_credit_and_its_steps():
    content = read_profile("mnist")
    params = params_with(variants=content["variants"], align={"steps": content["align"]["steps"]})
    table = TABLES["credit"]
    rows = rows_of(table, params)
    assert rows[:4] == ["base", "image-50", "cross-entropy", "image-12"] and "token-3x3-25" in rows
    assert table.label("token-3x3-25") == "token-3x3, 25 steps" and table.label("image-50") == "image, 50 steps"
    assert table.axis.point("token-3x3-25") == ("token-3x3", 25.0)
    pairs = [(claim.better, claim.worse) for claim in table.claims(rows)]
    assert pairs == [(f"{credit}-{n}", f"image-{n}") for n in (12, 25, 50) for credit in ("token", "token-3x3")]


def test_the_base_at_another_temperature_is_a_row_of_its_own(params):
    base = find_variant(params, BASE)
    assert [TABLES["report"].row(base, t, 1.0) for t in (1.0, 0.8)] == [BASE, "base at T 0.8"]


def test_rows_are_called_by_what_they_vary(params):
    assert TABLES["noise"].label("0.25") == "ξ = 0.25" and TABLES["noise"].label(BASE) == "base, no alignment"
    assert TABLES["regularizer"].label("kl-1.0") == "KL, β = 1.0"
    assert TABLES["reward"].label("prior") == "prior only" and TABLES["reward"].label("mse") == "mse, no prior"
    assert TABLES["reward"].label("cross-entropy") == "cross-entropy"
    assert TABLES["noise"].label("base at T 0.8") == "base at T 0.8"


def test_va_pi_is_asked_about_the_base_then_trained_rows_then_temperatures_from_high_to_low():
    rows = ["base", "base at T 0.6", SUBJECT, "cross-entropy", "base at T 0.85", "ste"]
    claims = subject_against_all(rows)
    assert [claim.worse for claim in claims] == ["base", "cross-entropy", "ste", "base at T 0.85", "base at T 0.6"]
    assert {claim.better for claim in claims} == {SUBJECT}


def test_the_experiment_waits_for_no_rival_and_rivals_have_both(params):
    experiment, rivals = (variants_of(params, *TABLES[name].rows) for name in ("report", "rivals"))
    assert [v.name for v in experiment] == ["base", "va-pi", "cross-entropy"]
    assert {v.name for v in rivals} - {v.name for v in experiment} == {
        "temperatures",
        "cross-entropy-clean",
        "ste",
        "tokenizer-post-training",
        "ar-grpo",
    }


def group_claims(rows):
    return [Claim("a group of 8 is better than 2", "8", "2"), Claim("a group of 8 is better than 4", "8", "4")]


GROUPS = Table(
    name="groups",
    title="Group size G (paper, table 9)",
    rows=("experiment", "groups"),
    scores=("fid",),
    claims=group_claims,
    pictures=("axis",),
    paper={"2": {"fid": 9.0}, "4": {"fid": 8.5}, "8": {"fid": 8.0}},
    paper_setting="FID of LlamaGen-XXL",
    axis=Axis(
        "rollouts of an image",
        row=lambda alignment: str(alignment.config.group_size),
        point=lambda row: ("G", float(row)),
        label=lambda row: f"G = {row}",
    ),
)


def test_a_fourth_table_of_the_paper_is_its_record_and_its_variants(tmp_path, monkeypatch):
    """The whole page, by the stage's own functions; nothing else knows of the table."""
    import torch

    from pipelines.reporting.pictures import draw_pictures
    from pipelines.stages.table import main, write_numbers

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TABLES, "groups", GROUPS)
    variant = {"table": "groups", "method": "va-pi", "guidance_scales": [1.0]}
    variants = {f"groups-{size}": {**variant, "align": {"group_size": size}} for size in (2, 4)}
    params = params_with(variants=variants, tables=["groups"])
    write_run(params, ("experiment", "groups"), fid=FID | {"groups-2": 6.0, "groups-4": 2.0})
    evidence = gather(TABLES["groups"], params)
    write_numbers(evidence)
    assert [path.name for path in draw_pictures(evidence, torch.device("cpu"))] == ["axis.png"]
    text = page(evidence, NO_PROTOCOL)
    assert "# Group size G (paper, table 9), profile `mnist`" in text
    assert "Under scorer-classifier: Of 2 claims of the paper 1 holds and 1 is reversed." in " ".join(text.split())
    assert re.search(r"\| G = 4 \| 1 \| 8\.5 \| (2|2\.00\d|1\.99\d) \[", text) and "| groups-2 | group_size 2 |" in text
    assert "`dvc repro table@groups` writes this page." in text
    assert {path.name for path in tmp_path.glob("reports/tables/groups/*")} >= {"summary.csv", "comparisons.csv"}
    with pytest.raises(SystemExit):
        main(["no-such-table"])
