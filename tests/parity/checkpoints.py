"""Checks of the tensors' names and shapes at full size, and of how official checkpoints wrap them."""

import re
from collections.abc import Iterator

import torch

from tests.parity.fixtures import Check, Fixture, exact
from tests.parity.generator import generator_config
from tests.parity.tokenizer import tokenizer_config
from vapi_core.models.generator import OFFICIAL_GENERATORS, Generator
from vapi_core.models.tokenizer import OFFICIAL_TOKENIZERS, Tokenizer
from vapi_core.models.weights import WRAPPERS


def check_layout(fixture: Fixture) -> Iterator[Check]:
    """checkpoint_layouts/GPT-*, VQ-*: every tensor of a full-size model, in order."""
    name, layout = fixture.description["official_model"], fixture.description
    config = layout["config"]
    with torch.device("meta"):
        is_tokenizer = name.startswith("VQ")
        model = Tokenizer(tokenizer_config(config)) if is_tokenizer else Generator(generator_config(config))
    parameters, state = dict(model.named_parameters()), model.state_dict()
    own = [(n, list(t.shape), str(t.dtype), "parameter" if n in parameters else "buffer") for n, t in state.items()]
    official = [(n, d["shape"], f"torch.{d['dtype']}", d["kind"]) for n, d in layout["state_dict"].items()]
    wrong = sum(a != b for a, b in zip(own, official, strict=False)) + abs(len(own) - len(official))
    yield Check(f"name, shape, dtype and kind of {len(official)} tensors", wrong, 0.0)
    yield exact("parameter count", sum(p.numel() for p in parameters.values()), layout["n_parameters"])
    buffers = sum(t.numel() for n, t in state.items() if n not in parameters)
    yield exact("buffer elements", buffers, layout["n_buffer_elements"])
    if isinstance(model, Tokenizer):
        yield exact("configuration of that name", OFFICIAL_TOKENIZERS[name], model.config)
    else:
        size = (model.config.dim, model.config.layers, model.config.heads)
        yield exact("configuration of that name", OFFICIAL_GENERATORS[name], size)
        yield exact("shape of the position table", list(model.rotary.shape), layout["freqs_cis"]["shape"])
        yield exact("position table saved", "rotary" in state, layout["freqs_cis"]["in_state_dict"])


def check_wrappers(fixture: Fixture) -> Iterator[Check]:
    """checkpoint_layouts/checkpoint_formats: under which keys weights may lie, the first one counting."""
    conditions = [re.match(r"'(\w+)' in ckpt", entry["when"]) for entry in fixture.description["order"]]
    yield exact("wrappers, in order", WRAPPERS, tuple(found[1] for found in conditions if found))
