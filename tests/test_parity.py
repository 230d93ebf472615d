"""The official numbers, and that the comparison can fail. `python -m tests.parity DIR` prints the same checks."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.own_fixtures import write, write_generator, write_rotary
from tests.parity.fixtures import Check, Fixture, close, exact, find_fixtures
from tests.parity.table import NO_CHECK, Result, check_fixture, checker, main
from tests.reference import REFERENCE, needs_reference

FIXTURES = find_fixtures(REFERENCE) if REFERENCE.is_dir() else []
KNOWN = [(stem, suffixes) for stem, suffixes in FIXTURES if checker(Fixture(REFERENCE, stem, suffixes))]


def name(value: object) -> str | None:
    return value.relative_to(REFERENCE).as_posix() if isinstance(value, Path) else ""


# The reference numbers


@needs_reference
@pytest.mark.parametrize(("stem", "suffixes"), KNOWN, ids=name)
def test_the_official_numbers_are_met(stem, suffixes):
    result = check_fixture(REFERENCE, stem, suffixes)
    assert result.status == "pass", [check for check in result.checks if not check.passed]
    assert not result.unread, "expected tensors that nothing is compared with"


@needs_reference
def test_every_fixture_has_a_check():
    known = {stem for stem, _ in KNOWN}
    assert [name(stem) for stem, _ in FIXTURES if stem not in known] == []
    assert len(known) >= 46


@needs_reference
@pytest.mark.parametrize(
    ("fixtures", "tensor"),
    [
        (["llamagen_gpt/c2i_tiny"], "weights.layers.1.attention.wo.weight"),
        (["llamagen_gpt/c2i_tiny_gqa2"], "weights.layers.0.attention.wqkv.weight"),
        (["llamagen_gpt/t2i_tiny"], "weights.cls_embedding.uncond_embedding"),
        (["llamagen_gpt/t2i_tiny_cls120"], "weights.cls_embedding.cap_proj.fc1.weight"),
        (["vq_tokenizer/vq8_tiny"], "weights.decoder.conv_out.weight"),
        (["vq_tokenizer/quantizer_only"], "in.embedding"),
        (["vapi/policy_step"], "base_weights.norm.weight"),
        (["vapi/policy_step_optimizer", "vapi/policy_step"], "after1.norm.weight"),
        (["vapi/advantages"], "in.rewards_1"),
        (["lpips/lpips_arithmetic"], "in.lin2"),
        (["vapi/sample_logprobs"], "in.logits"),
        (["vapi/ste_step", "vq_tokenizer/vq16_tiny"], "in.gumbel_noise"),
        (["vapi/reward", "vq_tokenizer/vq16_tiny"], "in.fake_lpips"),
        (["llamagen_gpt/sampling_filter"], "in.logits"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_one_wrong_number_makes_a_fixture_fail(tmp_path, capsys, fixtures, tensor):
    for fixture in fixtures:
        for suffix in (".json", ".safetensors"):
            target = tmp_path / (fixture + suffix)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REFERENCE / (fixture + suffix), target)
    path = tmp_path / (fixtures[0] + ".safetensors")
    tensors = load_file(path)
    assert main(tmp_path) == 0
    wrong = tensors[tensor].float()
    wrong.flatten()[3] += 0.1
    save_file(tensors | {tensor: wrong}, path)
    assert main(tmp_path) == 1
    assert f"FAIL {fixtures[0]}: " in capsys.readouterr().out


@needs_reference
@pytest.mark.parametrize(
    ("fixture", "right", "wrong"),
    [
        ("cases_a.jsonl", '"correct":false', '"correct":true'),
        ("cases_b.jsonl", "found 0 red", "found 1 red"),
        ("cases_options.jsonl", '"kept":{"cat":[1,0', '"kept":{"cat":[0,1'),
        ("cases_custom.jsonl", "found 0", "found 9"),
        ("primitives.json", "0.05039370059967041", "0.0504"),
        ("summary.json", "296 / 396", "297 / 396"),
        ("object_names.txt", "tv remote", "remote"),
    ],
)
def test_one_wrong_word_makes_a_geneval_fixture_fail(tmp_path, capsys, fixture, right, wrong):
    for name in (fixture, "evaluation_metadata.jsonl", "cases_a.jsonl", "cases_b.jsonl"):
        if name == fixture or fixture == "summary.json" or (name.startswith("eval") and fixture.startswith("cases")):
            shutil.copyfile(REFERENCE / "geneval" / name, tmp_path / name)
    text = (tmp_path / fixture).read_text()
    assert right in text
    (tmp_path / fixture).write_text(text.replace(right, wrong, 1))
    assert main(tmp_path) == 1
    assert f"FAIL {fixture.partition('.')[0]}: " in capsys.readouterr().out


# The comparison itself, on fixtures of our own making


def test_a_fixture_is_recognised_by_what_it_holds_whatever_its_name_folder_and_size(tmp_path, capsys):
    write_generator(tmp_path, "deep/down/some_name")
    write_rotary(tmp_path, "other_name")
    assert main(tmp_path) == 0
    out = capsys.readouterr().out
    assert re.search(r"deep/down/some_name .* pass", out) and re.search(r"other_name .* pass", out)
    assert "2 passed, 0 failed, 0 without a check" in out


def test_the_worst_quantity_is_the_one_that_is_worst_in_terms_of_its_own_tolerance():
    checks = [Check("large", 1e-3, 1e-2), Check("tight", 1e-5, 2e-5), Check("exact", 0.0, 0.0)]
    assert Result("x", checks, []).worst.quantity == "tight"
    assert Result("x", [*checks, Check("one token", 1.0, 0.0)], []).worst.quantity == "one token"


def test_a_row_shows_fixture_quantity_error_tolerance_and_verdict(tmp_path, capsys):
    write_rotary(tmp_path, error=5e-6)
    assert main(tmp_path) == 1
    out = capsys.readouterr().out
    assert re.search(r"tables +freqs_grid3_hd12_cls2 +5e-06 +1e-06 +FAIL", out)
    assert "FAIL tables: freqs_grid3_hd12_cls2: 5e-06, tolerance 1e-06" in out


def test_what_nothing_is_known_about_is_listed_and_is_no_failure(tmp_path, capsys):
    write_rotary(tmp_path)
    write(tmp_path, "janus", {}, {"out.image": torch.zeros(2)})
    (tmp_path / "lines.jsonl").write_text("{}\n{}\n")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "README.md").write_text("about")
    assert main(tmp_path) == 0
    out = capsys.readouterr().out
    for fixture in ("janus", "lines", "list"):
        assert re.search(rf"^{fixture} +{NO_CHECK}$", out, re.MULTILINE)
    assert "1 passed, 0 failed, 3 without a check" in out and "README" not in out


def test_an_expected_tensor_that_no_check_reads_is_listed(tmp_path, capsys):
    path = write_rotary(tmp_path)
    tensors = load_file(path.with_suffix(".safetensors"))
    save_file(tensors | {"out.something_new": torch.zeros(1)}, path.with_suffix(".safetensors"))
    assert main(tmp_path) == 0
    assert re.search(rf"tables +out.something_new +{NO_CHECK}", capsys.readouterr().out)


def test_a_folder_without_fixtures_is_an_error(tmp_path, capsys):
    assert main(tmp_path) == 1
    assert main(tmp_path / "nowhere") == 1
    assert f"no folder {tmp_path / 'nowhere'}" in capsys.readouterr().out
    write(tmp_path, "janus", {}, {"out.image": torch.zeros(2)})
    assert main(tmp_path) == 1  # nothing was compared


@pytest.mark.parametrize("damage", ["missing", "truncated", "json"])
def test_a_damaged_fixture_fails_and_the_others_are_still_checked(tmp_path, capsys, damage):
    write_rotary(tmp_path, "whole")
    path = write_rotary(tmp_path, "broken")
    if damage == "missing":
        path.with_suffix(".safetensors").unlink()
    elif damage == "truncated":
        path.with_suffix(".safetensors").write_bytes(path.with_suffix(".safetensors").read_bytes()[:50])
    else:
        path.write_text("{")
    assert main(tmp_path) == 1
    out = capsys.readouterr().out
    assert "FAIL broken: " in out and "1 passed, 1 failed" in out


def test_a_fixture_whose_weights_lie_elsewhere_fails_if_they_are_not_there(tmp_path):
    write(tmp_path, "schedule", {"weights_from": "gone", "cases": []}, {"out.greedy_0": torch.zeros(1)})
    result = check_fixture(tmp_path, tmp_path / "schedule", [".json", ".safetensors"])
    assert result.status == "FAIL" and "needs the fixture gone" in result.worst.quantity


def test_not_a_number_and_another_shape_never_pass():
    assert not close("x", torch.tensor([1.0, torch.nan]), torch.ones(2), 1e-3).passed
    assert not close("x", torch.ones(2), torch.ones(2, 1), 1e-3).passed
    assert not exact("x", torch.ones(2), torch.ones(3)).passed
    assert not Check("x", float("nan"), 1.0).passed and Check("x", float("nan"), 1.0).severity == float("inf")
    assert close("x", torch.ones(2), torch.ones(2), 0.0).passed and exact("x", (1, 2), (1, 2)).passed
