"""A disk that is too full is told of before any work."""

import pytest

from pipelines.commands import assets
from pipelines.config.loading import load_params
from pipelines.estimates import space
from pipelines.estimates.sizes import Disk
from pipelines.estimates.space import ANYWAY, SpaceError, behind, finished, require_space, to_come
from pipelines.messages import one_message

STAGES = [Disk("tokenizer", 10, working=5), Disk("align@va-pi", 20, working=7), Disk("score@va-pi", 0, kept=3)]


@pytest.fixture
def full(monkeypatch):
    monkeypatch.setattr(space, "free_bytes", lambda: 1e6)
    monkeypatch.setattr(assets, "free_bytes", lambda: 1e6)
    monkeypatch.delenv(ANYWAY, raising=False)


def test_outputs_add_up_and_of_states_there_is_one_at_a_time():
    assert to_come(STAGES, set(), copies=False) == 10 + 20 + 3 + 7
    assert to_come(STAGES, set(), copies=True) == 2 * (10 + 20) + 3 + 7


def test_what_is_there_need_not_come():
    assert to_come(STAGES, {"align@va-pi"}, copies=False) == 10 + 3 + 5
    assert to_come(STAGES, {disk.stage for disk in STAGES}, copies=True) == 0


def test_an_output_is_there_where_its_folder_has_something(tmp_path):
    (tmp_path / "data/generator").mkdir(parents=True)
    stages = [Disk("generator", 1, place=tmp_path / "data/generator")]
    assert finished(stages) == set()
    (tmp_path / "data/generator/weights").touch()
    assert finished(stages) == {"generator"}


def test_behind_a_stage_is_the_experiment_and_behind_a_variant_what_is_its_own():
    params = load_params()
    assert {"align@va-pi", "score-control@base"} <= {disk.stage for disk in behind("generator", params)}
    assert not {"subset", "align@ste"} & {disk.stage for disk in behind("generator", params)}
    assert [disk.stage for disk in behind("align@ste", params)] == ["align@ste", "sample@ste", "score@ste"]
    assert behind("report", params) == []


def test_a_stage_says_how_much_is_missing_and_what_to_do(full):
    with pytest.raises(SpaceError, match=r"sample@ste.* needs 0\.\d+ GB more .* 0\.001 GB are free") as told:
        require_space(load_params(), "sample@ste")
    assert told.value.needed > told.value.free == 1e6
    assert "VAPI_ANYWAY=1" in str(told.value) and "dvc gc" in str(told.value)


def test_who_knows_better_starts_anyway(full, monkeypatch):
    monkeypatch.setenv(ANYWAY, "1")
    require_space(load_params(), "sample@ste")


def test_it_is_one_message_and_no_traceback(full, capsys):
    assert one_message(require_space)(load_params(), "subset") == 1
    assert capsys.readouterr().err.startswith("error: subset, with what is behind it, needs ")


def test_check_assets_refuses_too_unless_told_otherwise(full, capsys):
    with pytest.raises(SpaceError, match="profile mnist needs"):
        assets.check("mnist")
    assert assets.check("mnist", anyway=True) == 0
    assert "warning: profile mnist needs" in capsys.readouterr().err
