"""How the settings of the default profile were chosen: one base, then alignments of it, on seeds that are not reported.

    python -m benchmarks.default_profile --pretraining 400
    python -m benchmarks.default_profile --pretraining 400 --method va-pi --set noise_ratio=0.5 steps=25 --seeds 21 22
    python -m benchmarks.default_profile --pretraining 400 --method ar-grpo --set ar_grpo.learning_rate=5.0e-4

Without --method it scores the reconstructions of held-out images and the base at several temperatures. Settings that are not given are those of `params.yaml`. The
split, the weights and all streams have other seeds than there (SPLIT_SEED, MODEL_SEED, --seeds), since what is chosen on
some numbers must be reported on others. Bases are kept in --cache. Needs no DVC and no MLflow.
"""

import argparse
import copy
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from pipelines.config.params import AlignParams, Params, grid_side, load_params

from vapi_core.alignment.ar_grpo import ArGrpo
from vapi_core.alignment.cross_entropy import CrossEntropy
from vapi_core.alignment.external_reward import ClassLikelihood
from vapi_core.alignment.reward import ReconstructionReward
from vapi_core.alignment.straight_through import StraightThrough
from vapi_core.alignment.tokenizer_post_training import TokenizerPostTraining
from vapi_core.alignment.va_pi import VaPi
from vapi_core.data.batches import AlignmentData
from vapi_core.data.images import encode_images, to_uint8
from vapi_core.data.sources import mnist_source
from vapi_core.data.subset import Subset, plan_subset, write_subset
from vapi_core.models.classifier import accuracy, load_classifier, save_classifier
from vapi_core.models.llamagen.generator import Generator
from vapi_core.models.llamagen.tokenizer import Tokenizer
from vapi_core.models.perceptual import FeatureDistance
from vapi_core.randomness import seed_torch
from vapi_core.sampling.sampler import SamplingConfig, generate, sampling_uniforms
from vapi_core.scoring.features import extract, load_extractor
from vapi_core.scoring.fidelity import fidelity
from vapi_core.training.classification import train_classifier
from vapi_core.training.loop import Objective, OptimizationConfig, train
from vapi_core.training.pretraining import GeneratorObjective, TokenizerObjective

CPU = torch.device("cpu")
SPLIT_SEED, MODEL_SEED = 11, 1
CLASSES = 10
METHODS = ("va-pi", "cross-entropy", "ste", "tokenizer", "ar-grpo")


class Base:
    """Everything that alignments share: images, classifiers, tokenizer, tokens, generator. Made once, kept in a folder."""

    def __init__(self, params: Params, cache: Path, pretraining: int):
        self.params, self.cache = params, cache
        cache.mkdir(parents=True, exist_ok=True)
        if not (cache / "subset").exists():
            source = mnist_source(params.subset.image_size)
            plan = plan_subset(source.labels, source.classes, params.subset.splits, SPLIT_SEED)
            write_subset(source, plan, cache / "subset")
        self.subset = Subset.open(cache / "subset")
        for role in ("reward", "scorer"):
            self._classifier(role)
        self.tokenizer = self._tokenizer()
        images, labels = self.subset.split("train")
        self.data = AlignmentData(encode_images(self.tokenizer, images, CPU, 128), labels, images, CPU)
        self.generator = self._generator(pretraining)

    def _classifier(self, role: str) -> None:
        config, directory = getattr(self.params.classifiers, role), self.cache / role
        if not directory.exists():
            images, labels = self.subset.split(config.split)
            training = {"epochs": config.epochs, "seed": config.seed, "batch_size": config.batch_size}
            network = train_classifier(images, labels, architecture=role, num_classes=CLASSES, **training)
            directory.mkdir()
            save_classifier(network, directory)

    def _tokenizer(self) -> Tokenizer:
        params, path = self.params.tokenizer, self.cache / "tokenizer.pt"
        images, _ = self.subset.split("train")
        seed_torch(MODEL_SEED, "tokenizer weights")
        tokenizer = Tokenizer(replace(params.config(), gray=True))
        if not path.exists():
            objective = TokenizerObjective(
                tokenizer, images, CPU, params.l1_weight, params.unquantized_steps, MODEL_SEED
            )
            fit(tokenizer, objective, params.training.config(), len(images), MODEL_SEED)
            torch.save(tokenizer.state_dict(), path)
        tokenizer.load_state_dict(torch.load(path))
        return tokenizer.eval().requires_grad_(False)

    def _generator(self, steps: int) -> Generator:
        path = self.cache / f"generator-{steps}.pt"
        training = self.params.generator.training.model_copy(update={"steps": steps})
        seed_torch(MODEL_SEED, "generator weights")
        config = self.params.generator.config(grid_side(self.params), self.params.tokenizer.codebook_size, CLASSES)
        generator = Generator(config)
        if not path.exists():
            fit(generator, GeneratorObjective(generator, self.data), training.config(), len(self.data), MODEL_SEED)
            torch.save(generator.state_dict(), path)
        generator.load_state_dict(torch.load(path))
        return generator.eval()


def fit(module: torch.nn.Module, objective: Objective, config: OptimizationConfig, count: int, seed: int) -> None:
    train(module, objective, config, count=count, seed=seed, log=lambda step, metrics: None)


def align(base: Base, method: str, params: AlignParams, seed: int) -> tuple[Generator, Tokenizer, float]:
    """The aligned generator, the tokenizer that decodes it, and the CPU seconds of the training."""
    generator, tokenizer, data = copy.deepcopy(base.generator), copy.deepcopy(base.tokenizer), base.data
    network = load_classifier(base.cache / "reward")
    perceptual = FeatureDistance(network, params.reward_first_stage)
    reference = copy.deepcopy(base.generator).requires_grad_(False)
    objective: Objective
    if method == "va-pi":
        reward = ReconstructionReward(tokenizer, params.weights(), perceptual)
        objective = VaPi(generator, reward, data, params.method(), seed, reference)
    elif method == "cross-entropy":
        objective = CrossEntropy(generator, data)
    elif method == "ste":
        objective = StraightThrough(generator, tokenizer, data, params.straight_through(), seed, perceptual)
    elif method == "tokenizer":
        objective = TokenizerPostTraining(tokenizer, generator, data, params.weights(), seed, perceptual)
    else:
        rewards = [(1.0, ClassLikelihood(network, np.asarray(data.conditions)))]
        objective = ArGrpo(generator, tokenizer, rewards, data, params.grpo(), seed, reference)
    start = time.process_time()
    trained = tokenizer if method == "tokenizer" else generator
    fit(trained, objective, params.optimization(method), len(data), seed)
    return generator.eval(), tokenizer.eval(), time.process_time() - start


@torch.inference_mode()
def draw(generator: Generator, tokenizer: Tokenizer, seed: int, temperature: float, count: int) -> np.ndarray:
    """Images uint8 [N, H, W, 3], one random stream each, classes in turn."""
    parts = []
    for start in range(0, count, 250):
        items = range(start, min(start + 250, count))
        uniforms = sampling_uniforms(seed, items, generator.config.length)
        classes = torch.tensor([i % CLASSES for i in items])
        parts.append(to_uint8(tokenizer.decode(generate(generator, classes, uniforms, SamplingConfig(temperature)))))
    return np.concatenate(parts)


@torch.inference_mode()
def reconstruct(base: Base) -> np.ndarray:
    """The held-out images, encoded and decoded, uint8 [N, H, W, 3]."""
    images, _ = base.subset.split("heldout")
    tokens = torch.from_numpy(encode_images(base.tokenizer, images, CPU, 128))
    return np.concatenate([to_uint8(base.tokenizer.decode(part)) for part in tokens.split(250)])


def score(base: Base, images: np.ndarray) -> str:
    """FID, precision and recall under both extractors, and the class accuracy."""
    held_out, _ = base.subset.split("heldout")
    line = []
    for name, extractor in (
        ("efficientnet", load_extractor("efficientnet-lite0", input_size=base.params.score.input_size)),
        ("classifier", load_extractor("classifier", weights=base.cache / "scorer")),
    ):
        samples, reference = (extract(x, extractor) for x in (images, held_out))
        result = fidelity(samples, reference, seed=0, kid_subsets=1, kid_subset_size=100)
        line.append(f"{name} " + " ".join(f"{key} {result[key]:.3f}" for key in ("fid", "precision", "recall")))
    return ", ".join(line) + f" accuracy {accuracy(samples['logits'], np.arange(len(images)) % CLASSES):.3f}"


def changed(params: AlignParams, assignments: list[str]) -> AlignParams:
    """The parameters with `key=value` or `section.key=value` put in; checked like params.yaml."""
    values = params.model_dump()
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        *sections, name = key.split(".")
        inner = values
        for section in sections:
            inner = inner[section]
        inner[name] = yaml.safe_load(value)
    return AlignParams.model_validate(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretraining", type=int, required=True, help="steps of the base generator")
    parser.add_argument("--method", choices=METHODS)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of `align` in params.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[21])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.8, 0.6], help="of the base")
    parser.add_argument("--threads", type=int, help="of the CPU; default: as params.yaml says")
    parser.add_argument("--count", type=int, default=1000, help="images of a set")
    parser.add_argument("--cache", type=Path, default=Path(".work/default-profile"))
    arguments = parser.parse_args()
    params = load_params()
    torch.set_num_threads(arguments.threads or params.threads or torch.get_num_threads())
    base = Base(params, arguments.cache, arguments.pretraining)
    settings = changed(params.align, arguments.set)
    if arguments.method is None:
        print(f"reconstructions of held-out images: {score(base, reconstruct(base))}", flush=True)
    for seed in arguments.seeds:
        if arguments.method is None:
            for temperature in arguments.temperatures:
                images = draw(base.generator, base.tokenizer, 100 + seed, temperature, arguments.count)
                print(f"base, temperature {temperature}, seed {seed}: {score(base, images)}", flush=True)
        else:
            generator, tokenizer, seconds = align(base, arguments.method, settings, seed)
            images = draw(generator, tokenizer, 100 + seed, 1.0, arguments.count)
            name = f"{' '.join([arguments.method, *arguments.set])}, seed {seed}, {seconds:.0f} CPU s"
            print(f"{name}: {score(base, images)}", flush=True)


if __name__ == "__main__":
    main()
