"""The files of a variant's scores."""

import pytest

from pipelines.config.paths import SCORES
from pipelines.variants.score_files import read_table
from vapi_core.errors import FileError


def test_a_table_of_scores_that_is_missing_or_empty_is_named_with_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = SCORES / "experiment/va-pi/scores.csv"
    again = r"`dvc repro --glob 'score\*@va-pi'`"
    with pytest.raises(FileError, match=r"scores\.csv: the file is missing.*" + again):
        read_table(path)
    path.parent.mkdir(parents=True)
    path.write_text("")
    with pytest.raises(FileError, match=r"scores\.csv: the file is damaged.*" + again):
        read_table(path)
