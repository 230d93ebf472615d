"""What a table's tests come to, in words."""

import pytest

from pipelines.reporting.conclusions import conclusions
from pipelines.reporting.evidence import gather
from pipelines.reporting.tables import TABLES
from tests.pipelines.reporting.workspace import FID, params_with, write_run


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def told(name="report", params=None, **run):
    params = params or params_with()
    write_run(params, TABLES[name].rows, **run)
    return " ".join("\n".join(conclusions(gather(TABLES[name], params))).split())


def test_each_row_has_an_entry_with_the_main_extractor_first_and_a_verdict_behind_each_score():
    text = told(accuracy={"base": 0.6, "va-pi": 0.9})
    entries = text.split("- **")[1:]
    rows = ("base, no alignment", "cross-entropy", "base at T 0.8", "base at T 0.6")
    assert [entry.split(".**")[0] for entry in entries] == [f"VA-π instead of {row}" for row in rows]
    assert entries[0].index("scorer-classifier: FID 5 to 3 (better)") < entries[0].index("efficientnet-lite0: FID")
    assert "accuracy 0.6 to 0.9 (better)" in entries[0]


def test_where_no_difference_is_found_stands_what_would_have_been():
    text = told(fid=FID | {"cross-entropy": 3.0}, spread=0.05)
    assert "(no difference found; detectable " in text


def test_of_a_single_seed_there_is_no_such_section():
    assert told(params=params_with(seeds=[4])) == ""


def test_a_table_of_the_paper_tells_its_claims_instead():
    assert told("noise") == ""
