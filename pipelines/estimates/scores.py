"""What scoring image sets has to do: features of every image, then statistics of them."""

from functools import lru_cache

import torch
from torch import nn

from pipelines.config.params import Params
from pipelines.estimates import models
from pipelines.estimates.drawing import CountedParams
from pipelines.estimates.sizes import features, reference_images
from pipelines.estimates.work import NOTHING, Work, counted, measure, operation
from vapi_core.models.classifier import ARCHITECTURES
from vapi_core.scoring.features import PixelScaling


@lru_cache(maxsize=64)
def extraction(key: CountedParams, extractor: str, side: int, count: int) -> Work:
    """Features of so many images."""
    params = key.params
    size = params.score.batch_size

    def build() -> Work:
        network: nn.Module
        images = torch.zeros(size, 3, side, side)
        if extractor.endswith("-classifier"):
            network = PixelScaling(ARCHITECTURES[extractor.removesuffix("-classifier")](models.DIGITS))
        elif extractor == "inception-v3-compat":
            from torchvision.models import inception_v3

            network = inception_v3(aux_logits=False, init_weights=False)
            images = torch.zeros(size, 3, 299, 299)
        else:
            import timm

            network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
            images = torch.zeros(size, 3, params.score.input_size, params.score.input_size)
        network.eval().requires_grad_(False)
        return measure(lambda: network(images))

    return counted(build) * (count / size)


def feature_statistics(params: Params, count: int) -> Work:
    """Mean and covariance of features in float64, and the eigenvalues of a product of two such."""
    work = NOTHING
    for name in params.score.extractors:
        dim = features(name)[0]
        work = work + operation(2 * 2 * count * dim**2, 8 * count * dim) + operation(2 * 25 * dim**3, 0)
    return work


def fidelity(params: Params, extractor: str, count: int) -> Work:
    """FID, KID, precision and recall of one set under one extractor, in numpy and on the CPU."""
    dim, others, p = features(extractor)[0], reference_images(params), params.score
    own = operation(2 * 2 * count * dim**2, 8 * count * dim) + operation(2 * 25 * dim**3, 0)
    subset = min(p.kid_subset_size, count, others)
    kernels = operation(2 * 2 * subset**2 * dim, 8 * 6 * subset**2) * (3 * p.kid_subsets)
    pairs = count**2 + others**2 + 2 * count * others
    return own + kernels + operation(2 * pairs * dim, 4 * 8 * pairs)
