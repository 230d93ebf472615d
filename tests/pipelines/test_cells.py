"""A cell is `align` with something changed; the tables of dvc.yaml and those of the code are the same."""

from pathlib import Path

import pytest
import yaml
from pipelines.cells import Cell, keep_terms, noise_cell, regularizer_cell, reward_cell, table_rows, terms_of
from pipelines.config.params import AlignParams, load_params

from vapi_core.errors import ParameterError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def params():
    return load_params(ROOT / "params.yaml")


def test_a_cell_changes_what_it_names_and_nothing_else(params):
    changed = noise_cell(0.5, 4).apply(params).align
    assert changed.noise_ratio == 0.5
    same = {"noise_ratio", "methods"}
    assert changed.model_dump(exclude=same) == params.align.model_dump(exclude=same)


def test_the_settings_of_a_cell_are_its_place_on_the_axes(params):
    setting = regularizer_cell("kl", 0.01, 4).settings(params)
    assert setting["regularizer"] == "kl" and setting["regularizer_weight"] == 0.01
    assert setting["noise_ratio"] == params.align.noise_ratio
    assert reward_cell("mse", 4, params.align.reward).settings(params)["reward"] == "mse"
    assert set(Cell("base", "", 4).settings(params).values()) == {None}


def test_a_term_of_the_reward_alone_has_no_regularizer_and_the_prior_alone_no_reward(params):
    mse = reward_cell("mse", 4, params.align.reward).apply(params).align
    assert mse.regularizer == "none" and mse.reward.mse > 0 and mse.reward.perceptual == 0
    prior = reward_cell("prior", 4, params.align.reward).apply(params).align
    assert prior.regularizer == params.align.regularizer and terms_of(prior.reward) == "prior"


def test_a_kept_term_has_its_weight_or_one(params):
    reward = params.align.reward.model_copy(update={"mse": 2.0, "l1": 0.0})
    assert keep_terms(reward, "mse+l1") == {"mse": 2.0, "perceptual": 0.0, "l1": 1.0, "embedding": 0.0}
    with pytest.raises(ParameterError, match="no term 'colour'"):
        keep_terms(reward, "mse+colour")


def test_a_setting_that_trains_nothing_is_refused(params):
    nothing = Cell("reward", "nothing", 4, {"reward": keep_terms(params.align.reward, "prior"), "regularizer": "none"})
    with pytest.raises(ParameterError, match="align.reward"):
        nothing.apply(params)


def test_every_cell_of_a_table_is_a_stage_of_dvc_yaml_that_its_table_waits_for(params):
    from dvc.repo import Repo

    stages = {stage.addressing: stage for stage in Repo(str(ROOT)).index.stages}
    for table in ("noise", "regularizer", "reward"):
        needed = {str(dep.fs_path) for dep in stages[f"ablation-{table}"].deps}
        for cell in table_rows(params, table):
            made = {str(Path(out.fs_path).relative_to(ROOT)) for out in stages[cell.stage].outs}
            assert str(cell.directory) in made
            assert any((ROOT / cell.directory).is_relative_to(folder) for folder in needed), cell
        rows = len({(cell.table, cell.row) for cell in table_rows(params, table)})
        assert rows == {"noise": 6, "regularizer": 7, "reward": 6}[table]


def test_cells_run_again_when_any_parameter_of_va_pi_changes_but_not_for_another_seed(params):
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    others = {"methods", "seeds", "ste", "tokenizer", "ar_grpo", "keep_every"}
    wanted = {f"align.{name}" for name in AlignParams.model_fields if name not in others}
    for stage in ("cell", "ablation-noise-cell", "ablation-regularizer-cell", "ablation-reward-cell"):
        assert wanted <= set(stages[stage]["params"])
        assert not {"align", "align.seeds", "ablations"} & set(stages[stage]["params"])
