"""From a judge's decisions over image sets to counts by prompt."""

import numpy as np

from pipelines.variants.judging import correct_images, prompt_rows, reconstruction_metrics
from vapi_core.scoring.geneval.folder import Prompt
from vapi_core.scoring.geneval.rules import Decision

PROMPTS = [Prompt({"prompt": f"a photo of {i}", "tag": tag}) for i, tag in enumerate(["colors", "colors", "counting"])]
LABELS = np.repeat(np.arange(3), 2)


class BrightnessJudge:
    """Finds an image correct if it is bright."""

    def decide(self, prompts, images):
        assert len(prompts) == len(images)
        return [(Decision(np.asarray(image).mean() > 128, ""), {}) for image in images]


def test_correct_images_are_counted_by_prompt():
    images = np.zeros((6, 4, 4, 3), np.uint8)
    images[[0, 2, 3]] = 255
    assert correct_images(BrightnessJudge(), images, LABELS, PROMPTS).tolist() == [1, 2, 0]


def test_more_images_than_are_judged_at_once_are_all_counted():
    images = np.full((300, 2, 2, 3), 255, np.uint8)
    images[-1] = 0
    assert correct_images(BrightnessJudge(), images, np.repeat(np.arange(3), 100), PROMPTS).tolist() == [100, 100, 99]


def test_every_prompt_is_a_row_with_its_task_and_its_images():
    rows = prompt_rows(np.array([1, 2, 0]), LABELS, PROMPTS)
    assert rows.to_dict("list") == {
        "prompt": [0, 1, 2],
        "task": ["colors", "colors", "counting"],
        "correct": [1, 2, 0],
        "images": [2, 2, 2],
    }


def test_reconstructions_are_judged_by_the_requests_of_their_own_scenes():
    images = np.zeros((3, 4, 4, 3), np.uint8)
    images[1] = 255
    metrics = reconstruction_metrics(BrightnessJudge(), images, [{"request": prompt.metadata} for prompt in PROMPTS])
    tasks = {"reconstruction_geneval colors": 0.5, "reconstruction_geneval counting": 0.0}
    assert metrics == {"reconstruction_geneval": 0.25} | tasks
