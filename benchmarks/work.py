"""Work of one alignment step per image, counted on tensors without memory: what a step must cost by its shapes."""

from collections.abc import Callable

import torch

from benchmarks.measure import flops
from vapi_core.models.llamagen.generator import Generator, GeneratorConfig
from vapi_core.models.llamagen.tokenizer import Tokenizer, TokenizerConfig
from vapi_core.models.perceptual import LPIPS


def parts(generator: GeneratorConfig, tokenizer: TokenizerConfig) -> dict[str, float]:
    """TFLOP of one forward of each part for one image: policy, decoder, LPIPS's trunk, encoder with quantizer."""
    side = generator.grid * tokenizer.downsample
    with torch.device("meta"), torch.no_grad():
        policy, vq, lpips = Generator(generator).eval(), Tokenizer(tokenizer).eval(), LPIPS()
        tokens = torch.zeros(1, generator.length, dtype=torch.long)
        class_ids, images = torch.zeros(1, dtype=torch.long), torch.zeros(1, 3, side, side)
        works: dict[str, Callable[[], object]] = {
            "policy": lambda: policy(class_ids, tokens[:, :-1]),
            "decode": lambda: vq.decode(tokens),
            "lpips": lambda: lpips.features(images),
            "encode": lambda: vq.encode(images),
        }
        return {name: flops(work) / 1e12 for name, work in works.items()}


def schedules(of: dict[str, float], group_size: int) -> dict[str, float]:
    """TFLOP of a step per image: the authors' schedule, ours, and ours where reference features were kept."""
    g, forward_backward = group_size, 3 * of["policy"]
    rollouts = g * (of["decode"] + of["lpips"])
    authors = of["encode"] + of["policy"] + rollouts + g * of["lpips"] + g * of["policy"] + g * forward_backward
    kept = forward_backward + rollouts
    return {"authors": authors, "ours": kept + of["lpips"], "ours, features kept": kept}


def table() -> str:
    """Both schedules of the official sizes at G = 8, as lines of a Markdown table."""
    from vapi_core.models.llamagen.generator import OFFICIAL_GENERATORS

    rows = ["| model | policy | decode | LPIPS | encode | authors | ours | ratio |", "| --- |" + " --- |" * 7]
    for name, side in (("GPT-B", 256), ("GPT-L", 256), ("GPT-XL", 256), ("GPT-XL", 384), ("GPT-XXL", 384)):
        dim, layers, heads = OFFICIAL_GENERATORS[name]
        of = parts(GeneratorConfig(dim=dim, layers=layers, heads=heads, grid=side // 16), TokenizerConfig())
        total = schedules(of, 8)
        numbers = [*of.values(), total["authors"], total["ours"], total["authors"] / total["ours"]]
        rows.append(f"| {name} at {side} | " + " | ".join(f"{n:.2f}" for n in numbers) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
