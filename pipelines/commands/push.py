"""Publishes aligned weights: safetensors, the tokenizer they draw through, and a model card, in a folder or on the Hub.

The card says what the weights were made from, by which settings, under which licence, and how the variant scored over
seeds.
"""

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipelines.commands.fetch import reachable
from pipelines.config.assets import OFFICIAL
from pipelines.config.loading import load_params
from pipelines.config.params import Params
from pipelines.config.paths import ALIGNED, GENERATOR, REPORTS, TOKENIZER, remedy
from pipelines.config.variant import BASE, find_variant
from pipelines.reporting.markdown import markdown_table
from pipelines.variants.score_files import SCORE_TITLES
from vapi_core.errors import FileError, ParameterError
from vapi_core.files import atomic_path, read_json, require_sha256
from vapi_core.models.checkpoints import model_hash

METRICS = REPORTS / "metrics.json"
KINDS = ("generator", "tokenizer")
LICENSES = {"FoundationVision/LlamaGen": "mit"}  # of bases, as the Hub calls them
PAPER = "https://arxiv.org/abs/2512.19680"
Rows = list[dict[str, Any]]  # extractor, setting, score, mean, low and high (None of one seed), seeds


def push(source: Path, target: str, *, hub: bool = False, private: bool = False, license: str | None = None) -> str:
    """Publishes the weights of one seed; returns where they are.

    Args:
        source: e.g. data/aligned/va-pi/30.
        target: a folder that is not there yet, or with `hub` the id of a repository.
        license: as the Hub calls it; None: that of the base, where it is known.

    Raises:
        FileError: there are no weights of this run, or the folder is there.
        ParameterError: the licence is not known.
        VapiError: the Hub cannot be reached, or refuses.
    """
    params = load_params()
    variant, seed = _names(source)
    base = base_repository(params)
    if (license := license or LICENSES.get(base or "")) is None:
        raise ParameterError(
            "--license", "say under which licence the weights stand, e.g. apache-2.0; see docs/licenses.md."
        )
    files = list(files_of(source))
    text = card(params, variant, seed, source, base, license, rows_of(variant))
    if not hub:
        folder = Path(target)
        if folder.exists():
            raise FileError(folder, "it is there already.", "Name another place.")
        with atomic_path(folder) as temporary:
            _write(temporary, files, text)
        return target
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as name, reachable(f"the repository {target} of the hub"):
        folder = Path(name) / "model"
        _write(folder, files, text)
        api = HfApi()
        api.create_repo(target, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=target, folder_path=folder, commit_message=f"{variant}, seed {seed}"))


def files_of(source: Path) -> Iterator[Path]:
    """The weights and their JSON, and those of the frozen tokenizer where a generator was aligned.

    Raises:
        FileError: they are missing or damaged, or were made from another base than this folder's.
    """
    kinds = [kind for kind in KINDS if (source / f"{kind}.json").is_file()]
    if not kinds:
        raise FileError(source, "there are no aligned weights in it.", "Name a folder such as data/aligned/va-pi/30.")
    folders = dict.fromkeys(kinds, source) | ({} if "tokenizer" in kinds else {"tokenizer": TOKENIZER})
    for kind, folder in folders.items():
        weights = folder / f"{kind}.safetensors"
        require_sha256(weights, model_hash(folder, kind, remedy(folder)), remedy(folder))
        made_from = read_json(folder / f"{kind}.json").get("base_sha256")
        own = {"generator": GENERATOR, "tokenizer": TOKENIZER}[kind]
        if made_from is not None and made_from != model_hash(own, kind, remedy(own)):
            raise FileError(weights, f"it was aligned from another base than {own}.", remedy(folder))
        yield from (folder / f"{kind}.json", weights)


def rows_of(variant: str) -> Rows:
    """The scores of a variant, and of the base beside it, in the report. Raises FileError where there is none."""
    rows: Rows = []
    for extractor, settings in read_json(METRICS, "Run `vapi run`.").items():
        for setting, scores in settings.items():
            if setting.rpartition(" g=")[0] in (variant, BASE):
                rows += [
                    {"extractor": extractor, "setting": setting, "score": name, "mean": scores[name]}
                    | {end: scores.get(f"{name}_{end}") for end in ("low", "high")}
                    | {"seeds": int(scores["seeds"])}
                    for name in SCORE_TITLES
                    if name in scores
                ]
    if not any(row["setting"].startswith(f"{variant} g=") for row in rows):
        raise FileError(METRICS, f"it has no scores of {variant}.", f"Run `vapi run score@{variant} report`.")
    return rows


def card(params: Params, variant: str, seed: int, source: Path, base: str | None, license: str, rows: Rows) -> str:
    """The model card, README.md of what is published."""
    from huggingface_hub import EvalResult, ModelCardData

    alignment = find_variant(params, variant).alignment
    assert alignment is not None
    task = "text-to-image" if params.task == "t2i" else "unconditional-image-generation"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=params.subset.source,
            dataset_name=params.profile,
            metric_type=row["score"],
            metric_value=row["mean"],
            metric_name=f"{row['score']} under {row['extractor']}, {row['setting']}",
        )
        for row in rows
        if row["setting"].startswith(f"{variant} g=")
    ]
    name = f"{params.profile}-{variant}"
    data = ModelCardData(
        license=license,
        base_model=base,
        library_name="vapi-lab",
        pipeline_tag=task,
        tags=["va-pi", "autoregressive-image-generation", "reinforcement-learning"],
        model_name=name,
        eval_results=results,
    )
    described = read_json(source / f"{'generator' if (source / 'generator.json').is_file() else 'tokenizer'}.json")
    settings = yaml.safe_dump(_plain(alignment.settings), sort_keys=False, allow_unicode=True)
    return f"""---
{data.to_yaml()}
---

# {name}, seed {seed}

Weights of {params.profile}, aligned by the method `{alignment.name}` of VA-π Lab: reinforcement learning that aligns an
autoregressive image generator with its tokenizer ([the paper of VA-π]({PAPER})).

- **Made from:** {base or f"a generator that was trained from scratch on {params.subset.source}"}, sha256
  `{described.get("base_sha256", "unknown")}`.
- **Weights:** sha256 `{described["sha256"]}`, in float32 as safetensors; the JSON beside them has the architecture.
- **Images of training:** {params.subset.source}, {params.subset.image_size} pixels.
- **Licence:** {license}.

## Scores

Means over seeds, with the 95 % interval of a t distribution, of the variant and of its base. This seed is one of them.

{score_table(rows)}

## Settings

```yaml
{settings}```

## To draw from it

```
vapi sample drawn --generator FOLDER {"--prompt 'a red fox'" if params.task == "t2i" else "--classes 0,1,2"}
```
"""


def score_table(rows: Rows) -> str:
    """The scores as a Markdown table: one row for each setting and score."""

    def interval(row: dict[str, Any]) -> str:
        return "" if row["low"] is None else f"[{row['low']:.4g}, {row['high']:.4g}]"

    return markdown_table(
        ("network", "setting", "score", "mean", "interval", "seeds"),
        [
            (row["extractor"], row["setting"], row["score"], f"{row['mean']:.4g}", interval(row), row["seeds"])
            for row in rows
        ],
    )


def base_repository(params: Params) -> str | None:
    """The repository of the hub that the base comes from; None: it was trained here, or is the user's own file."""
    checkpoint = params.generator.checkpoint
    if checkpoint is None:
        return None
    official = OFFICIAL.get(Path(checkpoint).name)
    return official.rpartition(" ")[2] if official else None


def _names(source: Path) -> tuple[str, int]:
    """Variant and seed of a folder data/aligned/VARIANT/SEED. Raises FileError for any other."""
    if (
        not source.is_relative_to(ALIGNED)
        or len(parts := source.relative_to(ALIGNED).parts) != 2
        or not parts[1].isdigit()
    ):
        raise FileError(source, "this is no folder of aligned weights.", "Name one such as data/aligned/va-pi/30.")
    return parts[0], int(parts[1])


def _plain(value: Any) -> Any:
    """Settings as plain data, which YAML can write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _write(folder: Path, files: list[Path], text: str) -> None:
    folder.mkdir()
    for file in files:
        shutil.copyfile(file, folder / file.name)
    (folder / "README.md").write_text(text, encoding="utf-8")
