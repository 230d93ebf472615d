"""Stage `align`: one alignment of the base generator, by one method and one seed."""

import argparse

from pipelines.inputs import open_generator, open_perceptual, open_split, open_tokenizer
from pipelines.paths import CLASSIFIERS, GENERATOR, TOKENIZER, TOKENS, aligned
from pipelines.stage import Stage, StagePlan, run_stage
from vapi_core.alignment.cross_entropy import CrossEntropy
from vapi_core.alignment.reward import ReconstructionReward
from vapi_core.alignment.va_pi import VaPi
from vapi_core.models.checkpoints import model_hash, save_model
from vapi_core.training import Objective, train


def plan(params, arguments) -> StagePlan:
    return StagePlan(
        f"align@{arguments.method}-{arguments.seed}",
        aligned(arguments.method, arguments.seed),
        params.align.model_dump(exclude={"methods", "seeds"}) | {"method": arguments.method, "seed": arguments.seed},
        (GENERATOR, TOKENS, TOKENIZER, CLASSIFIERS / "reward"),
        parent=None,
    )


def work(stage: Stage, arguments: argparse.Namespace) -> None:
    params = stage.params.align
    generator = open_generator(GENERATOR, stage.device)
    data = open_split("train", stage.device)
    objective: Objective
    if arguments.method == "va-pi":
        method = params.method()
        needs_base = method.regularizer == "kl" or method.log_kl_every > 0
        base = open_generator(GENERATOR, stage.device).requires_grad_(False) if needs_base else None
        perceptual = open_perceptual(params, stage.device) if method.reward.perceptual else None
        reward = ReconstructionReward(open_tokenizer(stage.device), method.reward, perceptual)
        objective = VaPi(generator, reward, data, method, arguments.seed, base)
    else:
        objective = CrossEntropy(generator, data)
    with stage.training_log(params.steps, params.batch_size) as log:
        train(
            generator,
            objective,
            params.config(),
            count=len(data),
            seed=arguments.seed,
            log=log,
            checkpoint=stage.checkpoint,
            fingerprint=stage.key,
        )
    save_model(stage.output, "generator", generator, base_sha256=model_hash(GENERATOR, "generator"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", required=True)
    parser.add_argument("--seed", type=int, required=True)
    run_stage(plan, work, parser)
