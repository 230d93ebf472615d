"""The alignments of a variant, one for each seed. What is finished is kept until all are, and a killed one goes on."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.config.paths import CLASSIFIERS, CURVES, GENERATOR, RUN_FILE, TOKENIZER, remedy
from pipelines.config.variant import STEPS, Alignment, Variant
from pipelines.frame.inputs import item_prompts, open_generator, open_split, open_subset, open_tokenizer
from pipelines.frame.stage import Metrics, Stage, outputs_hash, training_log, upstream_keys
from pipelines.tracking.runs import stage_key
from pipelines.variants.previews import Previews
from vapi_core import distributed
from vapi_core.alignment.method import Setting
from vapi_core.errors import FileError, ParameterError
from vapi_core.files import atomic_path, link_tree, read_json, write_json
from vapi_core.memory import part_bytes
from vapi_core.models.checkpoints import model_hash, save_model
from vapi_core.models.classifier import load_classifier
from vapi_core.models.policy import Policy
from vapi_core.training.flops import flops_per_image
from vapi_core.training.loop import autocast, train

FINISHED = "finished.json"  # of a seed that is trained: what it came from, and its metrics
CURVE = "curves.csv"
BASES = {"generator": GENERATOR, "tokenizer": TOKENIZER}


@dataclass(frozen=True)
class LentNetworks:
    """The networks of this experiment, for a method that asks for them (`vapi_core.alignment.method.Networks`)."""

    stage: Stage
    alignment: Alignment

    def base(self) -> Policy:
        return open_policy(self.stage, self.alignment).requires_grad_(False)

    def reward_classifier(self) -> torch.nn.Module:
        return load_classifier(CLASSIFIERS / "reward", self.stage.device, remedy(CLASSIFIERS / "reward"))

    def class_labels(self) -> Any:
        return open_subset().split("train")[1]

    def prompts(self, template: str) -> list[str]:
        return item_prompts("train", template)


def open_policy(stage: Stage, alignment: Alignment) -> Policy:
    """The base generator on the stage's device; with strategy fsdp, spread over those of all processes."""
    launch = stage.params.launch
    sharded = launch.strategy == "fsdp" and distributed.world_size() > 1
    if sharded and not alignment.method.shards:
        problem = f"{alignment.name} draws token by token, for which it needs whole weights: ddp."
        raise ParameterError("launch.strategy", problem)
    generator = open_generator(GENERATOR, torch.device("cpu") if sharded else stage.device)
    generator.activation_checkpointing = launch.activation_checkpointing
    if sharded:
        distributed.shard_weights(generator, stage.device, stage.dtype)
    return generator


def align_variant(stage: Stage, variant: Variant) -> None:
    """Trains every seed and writes the stage's output, one folder a seed, and their curves.

    DVC empties the output before a stage runs, so seeds are kept in the work folder until all of them are in the
    output.
    """
    kept = stage.checkpoint / "seeds"
    for seed in variant.seeds:
        align_seed(stage, variant, seed, kept / str(seed))
    if not distributed.is_main():
        return
    finished = [read_json(kept / str(seed) / FINISHED) for seed in variant.seeds]
    for name in finished[0]["metrics"]:
        stage.metrics[name] = sum(f["metrics"][name] for f in finished) / len(finished)
    with atomic_path(stage.output) as temporary:
        temporary.mkdir()
        for seed in variant.seeds:
            link_tree(kept / str(seed), temporary / str(seed))
    with atomic_path(CURVES / variant.name) as temporary:
        temporary.mkdir()
        for seed in variant.seeds:
            shutil.move(stage.output / str(seed) / CURVE, temporary / f"{seed}.csv")
            (stage.output / str(seed) / FINISHED).unlink()


def align_seed(stage: Stage, variant: Variant, seed: int, folder: Path) -> None:
    """Trains one seed into `folder` as a run of its own, unless it was finished before under the same fingerprint."""
    alignment = variant.alignment
    assert alignment is not None
    if alignment.threads is not None:
        torch.set_num_threads(alignment.threads)
    finished = is_finished(folder, stage.fingerprint)
    if distributed.from_main(float(finished)):
        return
    settings = alignment.settings | {"dtype": stage.params.launch.dtype, "seed": seed}
    key = stage_key(variant.stage("align"), settings, upstream_keys(stage.plan))
    with stage.own_run(variant.run_name(seed), key, settings | described(alignment), variant.tags) as run:
        metrics = train_seed(stage, variant, alignment, seed, folder, run)
        if distributed.is_main():
            run.log({f"stage/{name}": value for name, value in metrics.items()})
            run.made(outputs_hash(folder))
            write_json(
                folder / RUN_FILE, {"key": key, "stage": variant.stage("align"), "experiment": stage.params.profile}
            )
            write_json(folder / FINISHED, {"fingerprint": stage.fingerprint, "metrics": metrics})


def is_finished(folder: Path, fingerprint: str) -> bool:
    """Whether a seed was trained to its end from what is there now."""
    return (folder / FINISHED).is_file() and read_json(folder / FINISHED)["fingerprint"] == fingerprint


def described(alignment: Alignment) -> dict[str, Any]:
    """What people look for among a run's parameters beside the settings themselves."""
    reward = getattr(alignment.config, "reward", None)
    return {} if reward is None else {"terms": "+".join(reward.terms) or "prior"}


def require_kept(folder: Path, alignment: Alignment, checkpoint: Path) -> None:
    """Raises FileError where weights that an earlier attempt had kept are gone: training does not come by again."""
    for steps in alignment.kept_steps:
        if not (kept := folder / STEPS / str(steps)).is_dir():
            raise FileError(kept, "the weights after these steps are gone.", f"Remove {checkpoint}.")


def train_seed(stage: Stage, variant: Variant, alignment: Alignment, seed: int, folder: Path, run: Any) -> Metrics:
    """Trains in place, resumable, and saves weights and curves; returns what it cost."""
    generator, tokenizer = open_policy(stage, alignment), open_tokenizer(stage.device)
    data, networks = open_split("train", stage.device, stage.params.generator.family), LentNetworks(stage, alignment)
    part = int(distributed.from_main(part_bytes(stage.device)))  # all cut a step alike, or FSDP waits for ever
    setting = Setting(generator, tokenizer, data, networks, alignment.optimization, seed, stage.dtype, part)
    objective = autocast(alignment.method.open(alignment.config, setting), stage.device, stage.dtype)
    kind = alignment.method.trains
    trained: Any = {"generator": generator, "tokenizer": tokenizer}[kind]
    flops = flops_per_image(trained, objective, alignment.optimization, len(data), seed)

    def save(directory: Path) -> None:
        weights = distributed.whole_state_dict(trained)
        if distributed.is_main():
            save_model(directory, kind, trained, weights, base_sha256=model_hash(BASES[kind], kind))

    optimization = alignment.optimization
    pictures = stage.checkpoint / f"pictures-{stage.fingerprint[:16]}"
    previews = Previews(
        stage,
        run,
        folder=pictures / str(seed),
        base=pictures / "base.npy",
        every=alignment.images_every,
        generator=generator,
        tokenizer=tokenizer,
        config=variant.samplings[0],
        batch_size=optimization.micro_batch_size or optimization.batch_size,
    )

    def keep(steps: int) -> None:
        previews.after(steps)
        if steps in alignment.kept_steps:
            save(folder / STEPS / str(steps))

    if stage.params.launch.compile:
        generator.compile()
    previews.begin()
    name = f"{variant.name}@{seed}"
    with training_log(name, optimization.steps, optimization.batch_size, run, folder / CURVE) as log:
        train(
            trained,
            objective,
            optimization,
            count=len(data),
            seed=seed,
            log=log,
            checkpoint=stage.checkpoint / str(seed),
            fingerprint=stage.fingerprint,
            keep=keep,
        )
    if distributed.is_main():
        require_kept(folder, alignment, stage.checkpoint)
    save(folder)
    return {"flops_per_image": flops, "images_per_second": log.images_per_second}
