"""LlamaGen's files and what may be wrong with them."""

import argparse
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import CAPTIONED, same_weights, tiny_generator, tiny_tokenizer
from vapi_core.errors import FileError
from vapi_core.models.checkpoints import load_model, save_model
from vapi_core.models.llamagen.checkpoints import export_official, import_official


@pytest.fixture
def source():
    return tiny_generator(seed=1)


@pytest.fixture
def target():
    return tiny_generator(seed=2)


def test_a_captioned_generator_is_saved_exported_and_imported_with_its_null_caption(tmp_path):
    model = tiny_generator(seed=1, **CAPTIONED)
    save_model(tmp_path, "generator", model)
    loaded = load_model(tmp_path, "generator")
    assert same_weights(loaded, model) and loaded.config.condition_tokens == 5
    export_official(tmp_path / "official.pt", model)
    assert same_weights(import_official(tmp_path / "official.pt", tiny_generator(seed=2, **CAPTIONED)), model)
    assert "cls_embedding.uncond_embedding" in torch.load(tmp_path / "official.pt")["model"]


def test_a_generator_with_classes_is_no_generator_with_captions(tmp_path, source):
    torch.save(source.state_dict(), tmp_path / "w.pt")
    refused(tmp_path / "w.pt", tiny_generator(**CAPTIONED), "cls_embedding.uncond_embedding is missing")


@pytest.mark.parametrize("make", [tiny_generator, tiny_tokenizer])
def test_an_exported_model_is_imported_again(tmp_path, make):
    model = make(seed=1)
    export_official(tmp_path / "official.pt", model)
    content = torch.load(tmp_path / "official.pt", weights_only=True)
    assert list(content) == ["model"] and list(content["model"]) == list(model.state_dict())
    assert same_weights(import_official(tmp_path / "official.pt", make(seed=2)), model)


@pytest.mark.parametrize("wrapper", [None, "model", "module", "state_dict"])
def test_weights_are_found_bare_and_under_each_official_wrapper(tmp_path, source, target, wrapper):
    state = source.state_dict()
    torch.save({wrapper: state} if wrapper else state, tmp_path / "w.pt")
    assert same_weights(import_official(tmp_path / "w.pt", target), source)


def test_where_there_are_two_wrappers_the_official_order_decides(tmp_path, source, target):
    torch.save({"state_dict": target.state_dict(), "model": source.state_dict()}, tmp_path / "w.pt")
    assert same_weights(import_official(tmp_path / "w.pt", tiny_generator(seed=3)), source)


def test_a_training_checkpoint_of_llamagen_is_imported(tmp_path, source, target):
    optimizer = torch.optim.AdamW(source.parameters())
    content = {
        "model": source.state_dict(),
        "optimizer": optimizer.state_dict(),
        "steps": 300000,
        "args": argparse.Namespace(gpt_model="GPT-XL", lr=1e-4, ema=False, no_local_save=None),
        "ema": target.state_dict(),
    }
    torch.save(content, tmp_path / "0300000.pt")
    assert same_weights(import_official(tmp_path / "0300000.pt", tiny_generator(seed=3)), source)


def test_the_kv_cache_that_official_sampling_leaves_is_left_out(tmp_path, source, target):
    cache = {f"layers.{i}.attention.kv_cache.{k}_cache": torch.zeros(2, 4, 10, 8) for i in (0, 1) for k in "kv"}
    torch.save({"model": source.state_dict() | cache}, tmp_path / "w.pt")
    assert same_weights(import_official(tmp_path / "w.pt", target), source)


def test_a_safetensors_file_and_a_file_of_half_precision_are_imported(tmp_path, source, target):
    half = {name: t.bfloat16() for name, t in source.state_dict().items()}
    save_file(half, tmp_path / "w.safetensors")
    import_official(tmp_path / "w.safetensors", target)
    assert all(torch.equal(t, half[name].float()) for name, t in target.state_dict().items())


def test_a_file_in_the_format_before_zip_archives_is_imported(tmp_path, source, target):
    torch.save({"model": source.state_dict()}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    assert same_weights(import_official(tmp_path / "w.pt", target), source)


def refused(path: Path, model, match: str) -> None:
    """The import fails with a message that names the file, and leaves the model as it was."""
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(FileError, match=match) as caught:
        import_official(path, model)
    assert str(caught.value).startswith(f"{path}: ") and caught.value.path == path
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_wrong_wrapper_is_refused(tmp_path, source, target):
    torch.save({"weights": source.state_dict(), "step": 3}, tmp_path / "w.pt")
    refused(
        tmp_path / "w.pt",
        target,
        r"no state dict here, nor under model, module, state_dict; found \['weights', 'step'\]",
    )


def test_a_file_that_holds_something_else_is_refused(tmp_path, target):
    torch.save([torch.zeros(3)], tmp_path / "w.pt")
    refused(tmp_path / "w.pt", target, "no state dict here.*found list")


def test_a_missing_tensor_is_named(tmp_path, source, target):
    state = source.state_dict()
    del state["layers.1.ffn_norm.weight"]
    torch.save(state, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", target, "layers.1.ffn_norm.weight is missing")


def test_a_tokenizer_without_its_usage_buffer_is_refused_as_by_the_official_loader(tmp_path):
    state = tiny_tokenizer().state_dict()
    del state["quantize.codebook_used"]
    torch.save({"model": state}, tmp_path / "vq.pt")
    refused(tmp_path / "vq.pt", tiny_tokenizer(seed=2), "quantize.codebook_used is missing")


def test_an_unexpected_tensor_is_named(tmp_path, source, target):
    torch.save(source.state_dict() | {"layers.2.ffn_norm.weight": torch.ones(32)}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", target, "layers.2.ffn_norm.weight is unexpected")


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path, target):
    torch.save(tiny_generator(codebook_size=25).state_dict(), tmp_path / "w.pt")
    refused(tmp_path / "w.pt", target, r"tok_embeddings.weight has shape \[25, 32\], not \[24, 32\]; output.weight has")


def test_of_many_problems_the_first_three_are_named_and_the_rest_counted(tmp_path, source, target):
    torch.save({f"gpt.{name}": t for name, t in source.state_dict().items()}, tmp_path / "w.pt")
    count = 2 * len(source.state_dict()) - 3
    refused(tmp_path / "w.pt", target, f"cls_embedding.embedding_table.weight is missing; .* and {count} more")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 3, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, source, target, suffix, kept):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    refused(path, target, "the file is damaged")


@pytest.mark.parametrize(
    "text", ["hello", "<!doctype html>", '{"model": 1}', "version https://git-lfs.github.com/spec/v1"]
)
def test_a_file_of_text_is_refused(tmp_path, target, text):
    for suffix in (".pt", ".safetensors"):
        (tmp_path / f"w{suffix}").write_text(text)
        refused(tmp_path / f"w{suffix}", target, "the file is damaged")


def test_a_missing_checkpoint_is_named(tmp_path, target):
    refused(tmp_path / "nowhere.pt", target, "the file is missing")


class TouchesAFile:
    """What a pickle can do when it is loaded carelessly."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, source, target, zipped):
    proof = tmp_path / "code-ran"
    content = {"model": source.state_dict(), "args": TouchesAFile(proof)}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    refused(
        tmp_path / "w.pt", target, r"more than tensors \((posix|nt)\.mkdir\), which could run code, and was not loaded"
    )
    assert not proof.exists()

    torch.load(tmp_path / "w.pt", weights_only=False)  # it would have
    assert proof.exists()


def test_a_namespace_of_arguments_is_let_through_but_nothing_inside_it(tmp_path, source, target):
    proof = tmp_path / "code-ran"
    arguments = argparse.Namespace(results_dir=TouchesAFile(proof))
    torch.save({"model": source.state_dict(), "args": arguments}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", target, "could run code")
    assert not proof.exists()


def test_exported_safetensors_hold_the_official_names(tmp_path, source):
    save_model(tmp_path, "generator", source)
    assert set(load_file(tmp_path / "generator.safetensors")) == set(source.state_dict())
