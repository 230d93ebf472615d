"""A page says what the scores say, in both directions, and first what a reader wants to know."""

import re
import shutil
import subprocess

import pytest
import yaml

from pipelines.config.loading import check_params, load_params
from pipelines.config.paths import SCORES, STAGE_METRICS
from pipelines.config.profiles import compose
from pipelines.reporting.evidence import gather, read_stages, unique_rows
from pipelines.reporting.markdown import counted, item, markdown_table, prose
from pipelines.reporting.pages import detector_sentence, page
from pipelines.reporting.tables import TABLES
from pipelines.repository.graph import stage_graph
from tests.pipelines.reporting.workspace import ACCURACY, FID, NO_PROTOCOL, ROOT, params_with, write_run
from vapi_core.files import write_json


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def page_of(name="report", params=None, **run):
    params = params or params_with()
    write_run(params, TABLES[name].rows, **run)
    return page(gather(TABLES[name], params), NO_PROTOCOL)


def section(text, title):
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def rows_of(text, *starts):
    """Cells of the table rows whose first cells are these."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[: len(starts)] == list(starts)]


def test_findings_tell_fid_then_accuracy_claim_by_claim_and_only_numbers_of_the_rest():
    findings = section(page_of(), "Findings")
    assert findings.index("FID without guidance") < findings.index("Accuracy without guidance")
    assert "the main question" in findings
    (first, *_) = rows_of(findings, "VA-π is better than base")
    assert "efficientnet-lite0" in first and "better" in first
    assert re.search(r"[\d.]+ against [\d.]+", first[3]) and re.fullmatch(r"\S+ \[\S+, \S+\]", first[4])
    assert float(first[-1]) > 0  # the smallest difference that could have been seen
    (counts,) = rows_of(findings, "IS", "1")
    assert sum(map(int, counts[2:])) == 8  # four claims under two extractors
    assert len(rows_of(findings, "FID", "1.5")) == 1 and not rows_of(findings, "FID", "1")


def test_a_gain_a_loss_and_what_is_within_the_noise_are_told_as_such():
    text = page_of(fid=FID | {0.8: 2.0, "cross-entropy": 3.0}, accuracy=ACCURACY | {0.6: 0.95}, spread=0.01)
    accuracy = section(text, "Findings").split("**Accuracy")[1]
    assert "3 are better and 1 is worse" in accuracy
    assert rows_of(accuracy, "VA-π is better than base at T 0.6")[0][1] == "worse"
    fid = section(text, "Findings").split("**Accuracy")[0]
    assert {row[2] for row in rows_of(fid, "VA-π is better than base")} == {"better"}
    assert "no difference found" in {row[2] for row in rows_of(fid, "VA-π is better than cross-entropy")}
    assert {row[2] for row in rows_of(fid, "VA-π is better than base at T 0.8")} == {"not tested"}
    assert "which stop at the first without a difference" in " ".join(fid.split())


def test_every_comparison_stands_in_its_table_with_the_rule():
    text = section(page_of(), "Every comparison")
    # four claims without guidance and two with, about five scores under two extractors but accuracy under one
    assert len(rows_of(text)) - 2 == (4 + 2) * (4 * 2 + 1)
    for word in ("paired t-test", "Holm", "Student's at 95 %", "main question", "80 % power", "no evidence"):
        assert word in " ".join(text.split())


def test_every_mean_has_its_interval_and_every_set_as_many_images():
    text = page_of()
    cells = [cell for row in rows_of(section(text, "Scores"), "VA-π") for cell in row[2:]]
    assert cells and all(re.fullmatch(r"[\d.e-]+ \[[\d.e-]+, [\d.e-]+\]", cell) for cell in cells if cell)
    assert "All sets have 1,000 images." in text and "3 seeds: 4, 5, 6." in " ".join(text.split())


def test_unequal_numbers_of_images_are_not_passed_over():
    params = params_with()
    write_run(params, ("experiment",))
    base = SCORES / "experiment" / "base" / "scores.csv"
    base.write_text(base.read_text().replace(",1000", ",500"))
    text = page(gather(TABLES["report"], params), NO_PROTOCOL)
    assert "unequal numbers of images, 500 or 1,000" in " ".join(text.split())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["report", "noise"])
def test_of_one_seed_one_sentence_says_that_nothing_can_be_tested(name):
    text = page_of(name, params_with(seeds=[4]))
    assert "There is one seed, so nothing can be tested" in section(text, "Findings")
    assert "nan" not in text.lower() and "1 seeds" not in text and "1 seed: 4." in text
    assert (
        "## Every comparison" not in text
        and "not tested" not in text
        and "[" not in section(text, "Scores").split("###")[1]
    )
    assert len(section(text, "Findings").split("![")[0].splitlines()) < 6


def test_an_extractor_that_sees_the_tokenizer_only_is_named_but_not_asked():
    text = page_of(blind=("efficientnet-lite0",))
    findings = " ".join(section(text, "Findings").split())
    assert "`efficientnet-lite0` is not asked" in findings and "have FID 99, the base's samples" in findings
    assert "under scorer-classifier" in findings
    assert not any("efficientnet-lite0" in row for row in rows_of(section(text, "Every comparison")))
    assert "### efficientnet-lite0" in text  # its scores are shown all the same


def test_where_no_extractor_sees_nothing_is_compared():
    text = page_of(blind=("efficientnet-lite0", "scorer-classifier"))
    assert "nothing is left to compare by" in text and "## Every comparison" not in text


def test_the_paper_s_claims_are_summed_up_in_plain_words():
    noise = {"noise-0_0": 0.80, "noise-0_25": 0.85, "noise-0_75": 0.70, "noise-0_95": 0.80}
    text = " ".join(page_of("noise", accuracy=ACCURACY | noise).split())
    assert "Of 7 claims of the paper 5 hold, 1 is reversed and 1 finds no difference." in text
    assert "| ξ = 0.75 | 1 | 0.332 | " in text and "compare shapes only" in text
    assert "| noise helps: ξ = 0.75 is better than 0 | reversed |" in text


def test_a_table_whose_rows_were_not_run_says_so():
    params = params_with()
    params = params.model_copy(update={"variants": {"cross-entropy": params.variants["cross-entropy"]}})
    text = page_of(params=params)
    assert "No claim of this table has both of its rows here." in text and "### scorer-classifier" in text


def test_settings_stand_in_one_table_what_is_shared_once():
    text = section(page_of("reward"), "Settings")
    assert len(rows_of(text, "all alignments")) == len(rows_of(text, "all of method va-pi")) == 1
    assert "learning_rate 0.0006" in rows_of(text, "all alignments")[0][1]
    assert rows_of(text, "only-prior")[0][1] == "reward none, regularizer ce"
    assert rows_of(text, "only-mse")[0][1] == "reward 1 mse, regularizer none"
    assert rows_of(text, "cross-entropy") == [["cross-entropy", "nothing else"]]


def test_the_base_s_temperature_of_the_same_precision_is_named_for_every_extractor():
    text = " ".join(page_of(spread=0.0).split())
    assert text.count("come nearest in precision: VA-π (0.700) T 1.0 (0.700)") == 2


@pytest.mark.parametrize("name", list(TABLES))
def test_no_line_of_prose_is_long_and_nothing_is_nan(name):
    text = page_of(name)
    prose_lines = [line for line in text.splitlines() if not line.startswith(("|", "!"))]
    assert max(map(len, prose_lines)) <= 120
    assert "nan" not in text.replace("finance", "") and "target" not in text


def test_geneval_is_the_second_question_of_text_to_image_and_stands_by_task():
    params = check_params(yaml.safe_load(compose("scenes", ROOT)))
    text = page_of(params=params)
    findings = section(text, "Findings")
    assert findings.index("FID without guidance") < findings.index("GenEval without guidance")
    assert "| row | guidance | colors | counting | overall |" in section(text, "GenEval by task")
    each, seeds = params.sample.count, len(params.align.seeds)
    words = " ".join(text.split())
    assert f"10 prompts, {each} images each. Means over {seeds} seeds" in words
    assert f"All sets have 1,000 images, {each} of each prompt." in words


def test_the_detector_s_own_accuracy_and_that_of_reconstructions_is_told():
    known = {
        "detector_accuracy": 0.985,
        "detector_accuracy_fulfilled": 0.97,
        "detector_accuracy_foreign": 1.0,
        "reconstruction_geneval": 0.875,
    }
    told = detector_sentence(known)
    assert "98.5% of its decisions are right" in told and "by the tokenizer score 0.875" in told
    assert "another detector" in detector_sentence({})


@pytest.mark.parametrize("profile", ["mnist", "llamagen-xl-c2i", "scenes"])
def test_the_page_tells_of_the_stages_that_dvc_runs_for_it_and_of_no_other(profile, tmp_path):
    for name in ("dvc.yaml", ".dvc/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "params.yaml").write_text(compose(profile, ROOT), encoding="utf-8")
    subprocess.run(["git", "init", "-q"], check=True)
    params = load_params(tmp_path / "params.yaml")
    known = set(stage_graph("report")) - {"report"}
    for stage in (*known, "classifier@gone", "align@gone"):
        write_json(STAGE_METRICS / f"{stage}.json", {"seconds": 1.0})
    assert set(read_stages(params, unique_rows(TABLES["report"], params))) == known


# Markdown


def test_a_table_has_one_line_per_row_and_no_empty_column():
    assert markdown_table(["a", "b"], [[1, 2]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert markdown_table(["a", "b"], [[1, ""], [2, ""]]) == "| a |\n| --- |\n| 1 |\n| 2 |"


def test_prose_is_broken_between_words_alone():
    long = "`reports/tables/report` " * 20
    lines = prose(long).splitlines()
    assert max(map(len, lines)) <= 118 and " ".join(lines) == long.strip()
    assert item(long).splitlines()[1].startswith("  `") and prose("", "") == ""


def test_one_of_a_thing_is_no_plural():
    assert (counted(1, "seed"), counted(3, "claim of the paper")) == ("1 seed", "3 claims of the paper")
