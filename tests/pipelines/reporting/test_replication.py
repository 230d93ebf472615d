"""The report's alignments again: whether its verdicts stand, and how far equal seeds come apart."""

import numpy as np
import pytest

from pipelines.reporting.evidence import gather
from pipelines.reporting.pages import page
from pipelines.reporting.replication import spreads
from pipelines.reporting.tables import TABLES, subject_again
from tests.pipelines.reporting.workspace import ACCURACY, FID, NO_PROTOCOL, params_with, write_run

AGAIN = {
    f"{name}-again": {"table": "replication", "method": name, "align": {}, "guidance_scales": [1.0]}
    for name in ("va-pi", "cross-entropy")
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def page_of(fid, accuracy, **changes):
    params, table = params_with(variants=AGAIN, tables=["replication"], **changes), TABLES["replication"]
    write_run(params, table.rows, fid=FID | fid, accuracy=ACCURACY | accuracy)
    return " ".join(page(gather(table, params), NO_PROTOCOL).split())


def test_every_claim_of_the_report_is_asked_again_about_what_was_drawn_again():
    rows = ["base", "base at T 0.8", "va-pi", "cross-entropy", "va-pi-again", "cross-entropy-again"]
    assert [(claim.better, claim.worse) for claim in subject_again(rows)] == [
        ("va-pi-again", "base"),
        ("va-pi-again", "cross-entropy-again"),
        ("va-pi-again", "base at T 0.8"),
    ]


def test_verdicts_that_stand_are_counted():
    text = page_of({"va-pi-again": 3.0, "cross-entropy-again": 4.9}, {"va-pi-again": 0.9, "cross-entropy-again": 0.61})
    assert "Better in one and worse in the other: none." in text and "main scores" in text
    assert "| FID | scorer-classifier | VA-π is better than base | better | better |" in text


def test_a_verdict_that_turns_is_shown():
    text = page_of({"va-pi-again": 5.5, "cross-entropy-again": 4.9}, {})
    assert "| FID | scorer-classifier | VA-π is better than base | better | worse |" in text
    assert "Better in one and worse in the other: none." not in text


def test_what_is_tested_in_neither_is_no_agreement():
    """The first claim fails in both, so none behind it is tested."""
    same = {"va-pi": 5.0, "va-pi-again": 5.0, "cross-entropy-again": 4.9}
    text = page_of(same, {}, score={"extractors": ["scorer-classifier"]})
    assert "| FID | scorer-classifier | VA-π is better than base at T 0.8 |" not in text.split("verdicts again")[1]


def test_of_one_seed_nothing_stands_beside_the_report():
    assert "verdicts again" not in page_of({}, {}, seeds=[4])


def test_the_spread_of_a_seed_is_that_of_two_draws_of_it():
    random = np.random.default_rng(0)
    seeds, first, again = random.normal(0, 2, 4000), random.normal(0, 1, 4000), random.normal(0, 1, 4000)
    over_seeds, rounding = spreads(seeds + first, seeds + again)
    assert over_seeds == pytest.approx(np.sqrt(5), rel=0.05) and rounding == pytest.approx(1, rel=0.05)
