"""Files that a profile takes from elsewhere: which, where to get them, and which are missing, before any work.

`vapi assets check [PROFILE]` lists those of params.yaml or of a profile, and `vapi assets fetch` downloads some. Every
stage looks for its own, and for those of the stages behind it, before it starts.
"""

import os
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.config.params import Params
from pipelines.config.paths import REPOSITORY, STAGES
from pipelines.config.variant import EXPERIMENT, Variant, all_variants, key_of, variants_of
from vapi_core.data.hub import is_hub_id
from vapi_core.errors import VapiError
from vapi_core.models.perceptual import HEADS_FILES, VGG_FILE

LLAMAGEN = "Hugging Face repository FoundationVision/LlamaGen"
LLAMAGEN_T2I = "Hugging Face repository peizesun/llamagen_t2i"
OFFICIAL = {  # checkpoints by the name of their file
    **dict.fromkeys(("vq_ds16_c2i.pt", "vq_ds8_c2i.pt"), LLAMAGEN),
    **{f"c2i_{size}_{side}.pt": LLAMAGEN for size in ("B", "L") for side in (256, 384)},
    **{f"c2i_{size}_384.pt": LLAMAGEN for size in ("XL", "XXL", "3B")},
    **dict.fromkeys(("vq_ds16_t2i.pt", "t2i_XL_stage1_256.pt", "t2i_XL_stage2_512.pt"), LLAMAGEN_T2I),
}
IMAGES = "your own images; ImageNet: image-net.org, or the gated Hugging Face data set ILSVRC/imagenet-1k"
CAPTIONED = "your own images with captions; LAION-COCO: its addresses as a Hugging Face data set, images by img2dataset"
INCEPTION = "GitHub toshas/torch-fidelity, release v0.2.0, file weights-inception-2015-12-05-6726825d.pth"
VGG = f"torchvision's VGG16 for ImageNet, file {VGG_FILE}"
HEADS = (
    f"GitHub richzhang/PerceptualSimilarity, file lpips/weights/v0.1/{HEADS_FILES[0]} (the package `lpips` has it), or "
    f"GitHub toshas/torch-fidelity, release v0.2.0, file {HEADS_FILES[1]}"
)
ADM = (
    "GitHub openai/guided-diffusion, evaluations: the reference batch of ImageNet 256x256, "
    "openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/VIRTUAL_imagenet256_labeled.npz"
)
GENEVAL = "GitHub djghosh13/geneval, file prompts/evaluation_metadata.jsonl"
DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = ("timm/vit_large_patch14_clip_224.openai", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"))
HPSV2 = ("xswu/HPSv2", ("HPS_v2_compressed.pt",))
ENCODERS = {
    "flan-t5-xl": "google/flan-t5-xl",
    "janus": "deepseek-community/Janus-Pro-1B",
}  # minilm comes with a package


@dataclass(frozen=True)
class Asset:
    """A file or folder that some stage reads."""

    parameter: str
    place: str  # a path, or the id of a repository of the hub
    source: str  # where to get it
    stage: str  # the kind of stage that reads it
    files: tuple[str, ...] = ()  # of a folder or a repository: one of these must be in it
    hub: bool = False  # whether it is looked for in the hub's cache
    fetched: bool = False  # whether the stage itself fetches it where it is missing
    variants: tuple[str, ...] = ()  # of an alignment: those that need it

    def found(self) -> list[Path]:
        """Where it is, as far as something is there: the place, or those of its files that are in it."""
        if self.hub and not Path(self.place).exists():
            from huggingface_hub import try_to_load_from_cache

            cached = (try_to_load_from_cache(self.place, file) for file in self.files or ("config.json",))
            return [Path(path) for path in cached if isinstance(path, str)]
        path = Path(self.place)
        paths = [path / file for file in self.files] if self.files and not path.is_file() else [path]
        return [path for path in paths if path.exists()]

    @property
    def state(self) -> str:
        found = self.found()
        if any(has_content(path) for path in found):
            return "there"
        return "missing" if found or not self.fetched else "fetched when needed"


def has_content(path: Path) -> bool:
    """Whether a file has a byte, or a folder a file in it or below it."""
    if path.is_dir():
        return any(files for _, _, files in os.walk(path, followlinks=True))
    return path.stat().st_size > 0


def assets_of(params: Params) -> list[Asset]:
    """All assets of a profile, in the order of the stages that read them."""
    p, found = params, []
    if p.subset.path is not None:
        hub = p.subset.source == "dataset" and is_hub_id(p.subset.path)
        source = IMAGES if p.task == "c2i" else CAPTIONED
        found.append(Asset("subset.path", p.subset.path, source, "subset", fetched=hub))
    if isinstance(p.subset.prompts, str):
        found.append(Asset("subset.prompts", p.subset.prompts, GENEVAL, "subset"))
    for stage, checkpoint in (("tokenizer", p.tokenizer.checkpoint), ("generator", p.generator.checkpoint)):
        if checkpoint is not None:
            hub = is_hub_id(checkpoint) and Path(checkpoint).suffix not in (".pt", ".pth", ".safetensors")
            found.append(Asset(f"{stage}.checkpoint", checkpoint, _source(checkpoint), stage, hub=hub))
    if p.captions is not None and p.captions.encoder in ENCODERS:
        repository = ENCODERS[p.captions.encoder]
        found.append(_hub_asset("captions.checkpoint", p.captions.checkpoint, repository, (), "tokenize"))
    found += _alignment_assets(params)
    if "inception-v3-compat" in p.score.extractors:
        place = p.score.inception_checkpoint or f"{_torch_cache()}/weights-inception-2015-12-05-6726825d.pth"
        found.append(Asset("score.inception_checkpoint", place, INCEPTION, "score"))
    if p.score.reference_batch is not None:
        found.append(Asset("score.reference_batch", p.score.reference_batch, ADM, "score"))
    if p.score.geneval is not None and p.score.geneval.detector == "mask2former":
        g = p.score.geneval
        found.append(_hub_asset("score.geneval.checkpoint", g.checkpoint, DETECTOR, (), "score"))
        found.append(_hub_asset("score.geneval.colors_checkpoint", g.colors_checkpoint, *CLIP, "score"))
    return found


def _alignment_assets(params: Params) -> list[Asset]:
    """What the reward models of alignments are read from, each asset once, with all variants that need it."""
    needing: dict[Asset, list[str]] = {}
    for variant in all_variants(params):
        for asset in _assets_of_variant(variant, params):
            needing.setdefault(asset, []).append(variant.name)
    return [replace(asset, variants=tuple(names)) for asset, names in needing.items()]


def _assets_of_variant(variant: Variant, params: Params) -> Iterator[Asset]:
    if variant.alignment is None:
        return
    config = variant.alignment.config
    needs = variant.alignment.method.needs(config)

    def key(name: str) -> str:
        return key_of(variant.name, name, params.variants[variant.name].align)

    if "lpips" in needs:
        place = config.lpips_checkpoint or _torch_cache()
        yield Asset(key("lpips_checkpoint"), place, VGG, "align", (VGG_FILE,))
        yield Asset(key("lpips_checkpoint"), place, HEADS, "align", HEADS_FILES)
    if "clip_score" in needs:
        yield _hub_asset(key("clip_checkpoint"), config.clip_checkpoint, *CLIP, "align")
    if "hpsv2" in needs:
        yield _hub_asset(key("hpsv2_checkpoint"), config.hpsv2_checkpoint, *HPSV2, "align")


def _hub_asset(parameter: str, place: str | None, repository: str, files: tuple[str, ...], stage: str) -> Asset:
    """A path, or without one a repository in the hub's cache."""
    source = f"Hugging Face repository {repository}" + (f", file {files[0]}" if files else "")
    return Asset(parameter, place or repository, source, stage, () if place else files, hub=place is None)


def _source(checkpoint: str) -> str:
    name = Path(checkpoint).name
    if name in OFFICIAL:
        return f"{OFFICIAL[name]}, file {name}"
    return f"Hugging Face repository {checkpoint}" if is_hub_id(checkpoint) else "your own file"


def _torch_cache() -> str:
    import torch

    return f"{torch.hub.get_dir()}/checkpoints"


def needed_by(stage: str, assets: list[Asset], experiment: Container[str]) -> list[Asset]:
    """What must be there when a stage starts, by its name ("align@va-pi"): what it and the stages behind it read.

    A run from the start so stops in seconds; a stage whose inputs were made elsewhere does not ask for what made them.
    Of alignments only those of the `experiment` are behind a stage; another table's own are asked for when they start.
    """
    kind, _, name = stage.partition("@")
    kind = "table" if kind == "report" else kind.removesuffix("-control")
    if kind not in STAGES:
        return []
    position = STAGES.index(kind)
    behind = [asset for asset in assets if STAGES.index(asset.stage) >= position]
    if kind == "align":
        return [asset for asset in behind if not asset.variants or name in asset.variants]
    return [asset for asset in behind if not asset.variants or any(v in experiment for v in asset.variants)]


def require_assets(params: Params, stage: str) -> None:
    """Raises a VapiError that lists what is missing for a stage."""
    experiment = {variant.name for variant in variants_of(params, EXPERIMENT)}
    missing = [asset for asset in needed_by(stage, assets_of(params), experiment) if asset.state == "missing"]
    if missing:
        raise VapiError(f"{table(missing)}\n{summary(params.profile, missing)}")


def link_assets(params: Params, repository: Path = REPOSITORY) -> None:
    """Makes the relative paths of a profile work in a copy of the repository, where git's ignored files are missing."""
    for asset in assets_of(params):
        place = Path(asset.place)
        if not place.exists() and (repository / place).exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):  # another process of the stage was faster
                place.symlink_to((repository / place).resolve())


def table(assets: list[Asset]) -> str:
    """One paragraph per asset: state, place and parameter, where to get it."""
    lines = []
    for asset in assets:
        inside = f", {' or '.join(asset.files)}" if asset.files else ""
        cached = " in the hub's cache" if asset.hub else ""
        lines.append(f"{asset.state:8} {asset.place}{inside}{cached} ({asset.parameter}; stage {asset.stage})")
        if asset.state == "missing":
            lines += [f"{'':8} {path} is there, but empty" for path in asset.found()]
        if asset.state != "there":
            lines.append(f"{'':8} from {asset.source}")
    return "\n".join(lines)


def summary(profile: str, missing: list[Asset]) -> str:
    if not missing:
        return f"profile {profile}: nothing is missing."
    return (
        f"profile {profile}: {len(missing)} of its files are missing. Put them there, or name other places in params.yaml; "
        "`vapi assets fetch` gets what may be downloaded; `vapi assets check` lists them all."
    )
