import numpy as np
import torch

from pipelines.stages import score
from tests.tiny import random_tokens, tiny_tokenizer
from vapi_core.data.batches import AlignmentData
from vapi_core.data.images import to_uint8


def test_reconstructions_are_a_file_written_pass_by_pass(tmp_path, monkeypatch):
    tokenizer, tokens = tiny_tokenizer(), random_tokens(7, 16)
    with torch.no_grad():
        expected = to_uint8(tokenizer.decode(tokens))
    data = AlignmentData(tokens.numpy().astype(np.uint16), np.zeros(7, int), expected, torch.device("cpu"))
    monkeypatch.setattr(score, "OWN_WORK", tmp_path / "work")
    monkeypatch.setattr(score, "open_split", lambda split, device: data)
    monkeypatch.setattr(score, "open_tokenizer", lambda device: tokenizer)
    monkeypatch.setattr(score, "images_of_a_pass", lambda side: 3)
    images = score.reconstruct("heldout", torch.device("cpu"))
    assert isinstance(images, np.memmap)
    # another batch may round a pixel otherwise
    assert np.abs(images.astype(int) - expected).max() <= 1 and (images == expected).mean() > 0.99
