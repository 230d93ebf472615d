"""Every file that the report of a profile needs which imports its models, random, in the official formats.

`python -m tests.smoke_assets` writes those of the profile llamagen-smoke, tiny. With `--profile NAME` they have the
real size of that profile, so that the whole DAG can be rehearsed without any download: docs/full-size.md.

LlamaGen's `.pt` files (a DDP checkpoint with arguments and optimizer, and a bare one as FSDP leaves it), torchvision's
VGG16 with LPIPS's heads and torch-fidelity's Inception at their full size, an ADM reference batch, and a folder of
photographs (well, gradients) with a subfolder per class. Of text to image: `caption_assets`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.config.loading import check_params
from pipelines.config.params import Params, grid_side
from pipelines.config.profiles import read_profile
from pipelines.config.variant import find_variant
from pipelines.estimates.models import CAPTION_DIMS
from vapi_core.errors import ParameterError, VapiError
from vapi_core.models.llamagen.generator import Generator
from vapi_core.models.llamagen.tokenizer import Tokenizer
from vapi_core.models.perceptual import HEADS_FILES, LPIPS, VGG_FILE
from vapi_core.randomness import seed_torch, stream
from vapi_core.scoring.features import extract, load_extractor
from vapi_core.scoring.fidelity import feature_statistics

PROFILE = "llamagen-smoke"
SMOKE_CLASSES, IMAGENET_CLASSES = (5, 4), (1000, 2)  # how many classes, and images of each
REFERENCE_IMAGES = 8
CAPTIONED_IMAGES = 16
CAPTIONED = "assets/captioned"  # in place of a data set of the hub, which is no file


def write_images(folder: Path, side: int, classes: int, images_of_a_class: int) -> None:
    """Color gradients of unlike sizes, all larger than `side` pixels, as JPEG files, one subfolder per class."""
    for label in range(classes):
        (folder / f"n{label:08d}").mkdir(parents=True, exist_ok=True)
        for number in range(images_of_a_class):
            draws = stream(0, "smoke image", label, number)
            height, width = draws.integers(side * 5 // 4, side * 23 // 10, 2)
            corners = draws.integers(0, 256, (2, 2, 3)).astype(np.uint8)
            picture = Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)
            picture.save(folder / f"n{label:08d}" / f"{number}.JPEG")


def write_tokenizer(path: Path, params: Params) -> None:
    """A DDP training checkpoint of LlamaGen's tokenizer."""
    seed_torch(0, "smoke tokenizer")
    tokenizer = Tokenizer(params.tokenizer.config())
    torch.nn.init.normal_(tokenizer.quantize.embedding.weight)
    content = {"model": tokenizer.state_dict(), "args": argparse.Namespace(vq_model="VQ-16"), "steps": 1}
    torch.save(content, path)


def write_generator(path: Path, params: Params, classes: int) -> None:
    """A bare state dict, as LlamaGen's FSDP training leaves it; logits of the order of 1."""
    seed_torch(0, "smoke generator")
    captions = params.captions
    shape = (
        {} if captions is None else {"caption_dim": CAPTION_DIMS[captions.encoder], "caption_tokens": captions.tokens}
    )
    config = params.generator.config(grid_side(params), params.tokenizer.codebook_size, classes, **shape)
    generator = Generator(config)
    torch.nn.init.normal_(generator.output.weight, std=0.2)
    torch.save(generator.state_dict(), path)


def write_lpips(folder: Path) -> None:
    """torchvision's VGG16 (features; the classifier is not read) and the heads of LPIPS, random and non-negative."""
    folder.mkdir(parents=True, exist_ok=True)
    seed_torch(0, "smoke lpips")
    state = LPIPS().state_dict()
    vgg = {f"features.{name.split('.', 2)[2]}": value for name, value in state.items() if name.startswith("net.")}
    torch.save(vgg, folder / VGG_FILE)
    heads = {name: value.abs() for name, value in state.items() if name.startswith("lin")}
    torch.save(heads, folder / HEADS_FILES[0])


def write_inception(path: Path) -> None:
    """Random weights in the layout of torch-fidelity's InceptionV3, through whose depth images stay apart."""
    from unittest.mock import patch

    from torch_fidelity import feature_extractor_inceptionv3 as module

    class Unloaded(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs):
            pass

    seed_torch(0, "smoke inception")
    with patch.object(module, "load_state_dict_from_url", lambda *args, **kwargs: {}):
        network = Unloaded("inception", ["2048"])
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):  # torch's own initial weights shrink features to nothing in 94 layers
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)


def write_reference_batch(path: Path, inception: Path, side: int) -> None:
    """ADM's format: mu and sigma of Inception's features of a whole set, and half of its images, the bright half."""
    images = stream(0, "smoke reference").integers(0, 256, (2 * REFERENCE_IMAGES, side, side, 3), dtype=np.uint8)
    images[REFERENCE_IMAGES:] //= 4
    features = extract(images, load_extractor("inception-v3-compat", weights=inception))["features"]
    statistics = feature_statistics(features)
    np.savez(path, arr_0=images[:REFERENCE_IMAGES], mu=statistics.mu, sigma=statistics.sigma)


def write_smoke_assets(params: Params, root: Path = Path()) -> None:
    """All files, where `params` look for them, below `root`; those of the hub in HF_HUB_CACHE.

    Raises:
        ParameterError: the profile trains its own models.
        VapiError: it takes some from the hub, and HF_HUB_CACHE does not say where a cache of random files is to be.
    """
    subset, score = params.subset, params.score
    alignment = find_variant(params, "va-pi").alignment
    assert alignment is not None
    lpips = alignment.config.lpips_checkpoint
    if not (subset.path and params.tokenizer.checkpoint and params.generator.checkpoint and lpips):
        raise ParameterError("profile", f"{params.profile} imports nothing: it trains its own models.")
    assert score.inception_checkpoint
    if params.task == "c2i":
        classes, images_of_a_class = SMOKE_CLASSES if params.profile == PROFILE else IMAGENET_CLASSES
        write_images(root / subset.path, subset.image_size, classes, images_of_a_class)
    else:
        classes = 1
        write_captions(params, root)
    if params.generator.family == "llamagen":
        write_tokenizer(root / params.tokenizer.checkpoint, params)
        write_generator(root / params.generator.checkpoint, params, classes)
    write_lpips(root / lpips)
    write_inception(root / score.inception_checkpoint)
    if score.reference_batch:
        assert params.sample.save_size
        write_reference_batch(root / score.reference_batch, root / score.inception_checkpoint, params.sample.save_size)


def write_captions(params: Params, root: Path) -> None:
    """Images with captions, prompts, what reads them, and what judges the images that come of them."""
    from tests import caption_assets

    subset = params.subset
    assert subset.path and isinstance(subset.prompts, str)
    caption_assets.write_prompts(root / subset.prompts)
    images = subset.path if subset.source == "webdataset" else CAPTIONED
    caption_assets.write_captioned_images(
        root / images, subset.image_size, CAPTIONED_IMAGES, packed=subset.source == "webdataset"
    )
    if params.generator.family == "janus":
        caption_assets.write_full_janus(params)
    else:
        caption_assets.write_text_encoder()
    caption_assets.write_judges()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.smoke_assets")
    parser.add_argument("--profile", default=PROFILE)
    parser.add_argument("--layers", type=int, help="of the generator, instead of the profile's")
    options = parser.parse_args(arguments)
    try:
        content = read_profile(options.profile)
        content["generator"]["layers"] = options.layers or content["generator"]["layers"]
        write_smoke_assets(check_params(content))
    except VapiError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
