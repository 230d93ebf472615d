"""From decisions over image sets to the tables and sentences of the report."""

import numpy as np
import pandas as pd
import pytest
from pipelines.variants.judging import (
    compare_geneval,
    correct_images,
    geneval_metrics,
    overall_scores,
    prompt_rows,
    reconstruction_metrics,
    summarize_geneval,
)
from pipelines.geneval_text import geneval_findings, geneval_sections
from pipelines.config.params import load_params

from vapi_core.scoring.geneval.folder import Prompt
from vapi_core.scoring.geneval.rules import Decision

PROMPTS = [Prompt({"prompt": f"a photo of {i}", "tag": tag}) for i, tag in enumerate(["colors", "colors", "counting"])]
LABELS = np.repeat(np.arange(3), 2)


class BrightnessJudge:
    """Finds an image correct if it is bright."""

    def decide(self, prompts, images):
        assert len(prompts) == len(images)
        return [(Decision(np.asarray(image).mean() > 128, ""), {}) for image in images]


def rows(model: str, seed: int, correct: list[int], temperature: float = 1.0) -> pd.DataFrame:
    identity = {"model": model, "generator": f"data/{model}", "seed": seed, "temperature": temperature}
    return prompt_rows(np.array(correct), LABELS, PROMPTS).assign(**identity, guidance_scale=1.0)


@pytest.fixture
def judged() -> pd.DataFrame:
    sets = [rows("base", 4, [0, 1, 1]), rows("base", 5, [1, 1, 0]), rows("base", 4, [1, 1, 1], 0.8)]
    sets += [rows("base", 5, [1, 2, 0], 0.8), rows("va-pi", 4, [2, 2, 2]), rows("va-pi", 5, [2, 2, 1])]
    return pd.concat(sets)


def test_correct_images_are_counted_by_prompt():
    images = np.zeros((6, 4, 4, 3), np.uint8)
    images[[0, 2, 3]] = 255
    assert correct_images(BrightnessJudge(), images, LABELS, PROMPTS).tolist() == [1, 2, 0]


def test_reconstructions_are_judged_by_the_requests_of_their_own_scenes():
    images = np.zeros((3, 4, 4, 3), np.uint8)
    images[1] = 255
    metrics = reconstruction_metrics(BrightnessJudge(), images, [{"request": prompt.metadata} for prompt in PROMPTS])
    tasks = {"reconstruction_geneval colors": 0.5, "reconstruction_geneval counting": 0.0}
    assert metrics == {"reconstruction_geneval": 0.25} | tasks


def test_overall_is_the_mean_of_the_tasks_of_every_set(judged):
    overall = overall_scores(judged).set_index(["model", "temperature", "seed"])["overall"]
    assert overall["base", 1.0, 4] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert overall["va-pi", 1.0, 5] == pytest.approx((1 + 1 / 2) / 2)


def test_the_summary_is_over_seeds_by_setting_and_task(judged):
    summary = summarize_geneval(judged)
    base = summary[(summary["model"] == "base") & (summary["temperature"] == 1.0)].set_index("task")
    assert base.loc["colors", "mean"] == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert base.loc["overall", "prompts"] == 3
    assert geneval_metrics(summary)["va-pi T=1.0 g=1.0"] == {"colors": 1.0, "counting": 0.75, "overall": 0.875}


def test_differences_are_paired_by_prompt_and_seed(judged):
    differences = compare_geneval(judged, main_temperature=1.0).set_index(["against", "temperature", "task"])
    assert set(differences.index.get_level_values("against")) == {"base"}
    assert differences.loc[("base", 1.0, "counting"), "mean"] == pytest.approx(0.5)
    assert differences.loc[("base", 1.0, "counting"), "standard_error"] == pytest.approx(0)


@pytest.fixture
def params():
    params = load_params()
    geneval = {"detector": "scenes", "checkpoint": None, "colors_checkpoint": None}
    return params.model_validate(
        params.model_dump(mode="json") | {"score": params.score.model_dump(mode="json") | {"geneval": geneval}}
    )


def test_one_seed_has_no_interval_over_seeds_and_decides_nothing(judged, params):
    judged = judged[judged["seed"] == 4]
    differences = compare_geneval(judged, 1.0)
    (section, against) = geneval_sections(summarize_geneval(judged), differences, {}, params)
    lines = geneval_findings(differences, params)
    assert "nan" not in "\n".join([section, against, *lines]).lower()
    overall = differences[(differences["temperature"] == 1.0) & (differences["task"] == "overall")].iloc[0]
    assert overall["low"] > 0  # over prompts alone it would be a difference
    assert "cannot be told apart" in lines[0] and "one seed and so no interval over seeds" in lines[0]
    assert f"| {overall['mean']:+.3f} [{overall['low']:+.2f}, {overall['high']:+.2f}] |" in against


def test_the_report_tells_differences_and_the_detectors_accuracy(judged, params):
    summary, differences = summarize_geneval(judged), compare_geneval(judged, 1.0)
    known = {
        "detector_accuracy": 0.985,
        "detector_accuracy_fulfilled": 0.97,
        "detector_accuracy_foreign": 1.0,
        "reconstruction_geneval": 0.875,
    }
    (section, against) = geneval_sections(summary, differences, known, params)
    assert "98.5% of its decisions are right" in section and "by the tokenizer score 0.875" in section
    assert "| va-pi | 1.0 | 1.0 |" in section
    assert "**+0.500** [+0.50, +0.50] [+0.50, +0.50]" in against
    (first, second) = geneval_findings(differences, params)
    assert first.startswith("GenEval overall, without guidance: against the base, VA-π ") and "at temperature" in second
