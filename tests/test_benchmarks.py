"""The benchmarks in their quick form: both sides give the same. Nothing here is about time."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import authors, work
from benchmarks.align import Sides, grown
from benchmarks.figures import save_figure, save_start_up
from benchmarks.measure import least_disturbed_ratio, pairs, peak, run
from benchmarks.models import setting
from benchmarks.sample import equal_tokens, packing_gain
from benchmarks.summary import summary
from tests.tiny import tiny_generator
from vapi_core.models.llamagen.generator import OFFICIAL_GENERATORS, Generator, GeneratorConfig
from vapi_core.models.llamagen.tokenizer import TokenizerConfig
from vapi_core.sampling import packing
from vapi_core.sampling.sampler import SamplingConfig, generate, sampling_uniforms

CPU = torch.device("cpu")
WORK_OF_XL = {"policy": 0.93, "decode": 0.57, "lpips": 0.09, "encode": 0.31}  # TFLOP an image at 384


def quick(monkeypatch, name: str, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks", name, "--profile", "mnist", "--quick", *options])
    return command.main()


@pytest.mark.parametrize("name", ["align", "sample", "tokenize", "score"])
def test_ours_and_the_authors_schedule_give_the_same(monkeypatch, capsys, name):
    assert quick(monkeypatch, name) == 0, capsys.readouterr().err
    assert "the same" in capsys.readouterr().out


def test_the_authors_contexts_may_come_in_parts(monkeypatch):
    assert quick(monkeypatch, "align", "--contexts-at-a-time", "5") == 0


def test_a_side_that_gives_something_else_fails(monkeypatch, capsys):
    chosen = authors._chosen
    monkeypatch.setattr(authors, "_chosen", lambda logits, tokens: 1.01 * chosen(logits, tokens))
    assert quick(monkeypatch, "align") == 1
    assert "gradients differ" in capsys.readouterr().err
    monkeypatch.setattr(authors, "invert_cdf", lambda p, u: p.argmax(-1, keepdim=True))
    assert quick(monkeypatch, "sample") == 1
    assert "tokens are equal" in capsys.readouterr().err


def test_long_sequences_of_many_codes_are_equal_token_by_token():
    """In float32 some would not be: rounding moves a token to its neighbour, and all behind it are others."""
    generator, images = tiny_generator(grid=16, codebook_size=16384, dim=256, init_std=0.06), 8
    torch.nn.init.normal_(generator.output.weight, std=0.02)  # nearly even
    uniforms, class_ids = sampling_uniforms(0, range(images), 256), torch.arange(images) % 3
    assert equal_tokens(generator, SamplingConfig(guidance_scale=1.5), False, class_ids, uniforms).all()
    assert generator.output.weight.dtype == torch.float32


def test_the_moments_of_the_optimizer_are_there_before_the_first_step(monkeypatch):
    """Made in the first step, they would count to the peak of the side that runs first."""
    monkeypatch.setattr(sys, "argv", ["benchmarks", "align", "--profile", "mnist", "--quick"])
    sides = Sides(setting(command.parse()), None, "adamw")
    before = {name: value.clone() for name, value in sides.generator.named_parameters()}
    held = {id(value) for state in sides.optimizer.state.values() for value in state.values()}
    assert len(sides.optimizer.state) == len(before) and all(p.grad is None for p in sides.generator.parameters())
    sides.step(sides.ours)
    assert held == {id(value) for state in sides.optimizer.state.values() for value in state.values()}
    assert all(torch.equal(value, before[name]) for name, value in sides.generator.named_parameters())


def test_memory_is_measured_over_images_rollouts_and_resolution(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "align", "--profile", "mnist", "--quick"])
    s = setting(command.parse())
    assert grown(s, "images", 2) == replace(s, images=2 * s.images)
    assert grown(s, "group_size", 2).method == replace(s.method, group_size=2 * s.method.group_size)
    for factor in (0.5, 1, 2):
        side = grown(s, "image_size", factor)
        assert (side.image_size, side.generator.length) == (s.image_size * factor, s.generator.length * factor**2)


def test_an_unknown_profile_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "align", "--profile", "nothing"])
    assert command.main() == 1
    assert "There are: " in capsys.readouterr().err


def test_pairs_alternate_and_their_figure_is_drawn(tmp_path):
    order = []
    results = pairs(lambda: order.append("ours"), lambda: order.append("authors"), CPU, 3)
    assert order == ["ours", "authors"] * (3 + 1)  # the last for the peaks
    low, high = results["ratio_range"]
    assert low <= results["ratio"] <= high
    low, high = results["cpu_ratio_range"]
    assert low <= results["cpu_ratio"] <= high
    results["growth"] = [{"quantity": "images", "value": n, "ours": n * 2**20, "authors": None} for n in (1, 2)]
    save_figure(tmp_path / "figure.png", "align", results)
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_packed_weights_are_compared_with_plain_ones():
    generator = Generator(GeneratorConfig(dim=512, layers=1, heads=8, grid=2, codebook_size=512, classes=3)).eval()
    class_ids, uniforms = torch.tensor([0]), torch.rand(1, 4)
    if not packing.packable_layers(generator, 1):
        pytest.skip("this PyTorch cannot pack")
    results = packing_gain(lambda: generate(generator, class_ids, uniforms, SamplingConfig()), CPU, 3)
    low, high = results["cpu_ratio_range"]
    assert low <= results["cpu_ratio"] <= high and results["equal_tokens"] == 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="the process's peak memory is Linux's")
def test_the_peak_of_a_run_is_what_it_holds_at_once():
    megabytes = 64
    peak = run(lambda: torch.ones(megabytes * 2**18).sum(), CPU).peak_bytes
    assert megabytes * 2**20 * 0.9 < peak < megabytes * 2**20 * 1.5


@pytest.mark.skipif(sys.platform != "linux", reason="the process's peak memory is Linux's")
def test_what_an_earlier_run_freed_counts_again():
    megabytes, kept = 64, []

    def work() -> None:
        parts = [torch.ones(2**14) for _ in range(16 * megabytes)]  # 64 KB each: freed, they stay in the allocator
        kept.append(torch.ones(2**14))
        del parts

    peaks = [run(work, CPU).peak_bytes for _ in range(3)]
    assert min(peaks) > megabytes * 2**20 * 0.9, peaks


@pytest.mark.skipif(sys.platform != "linux", reason="the process's peak memory is Linux's")
def test_holes_of_freed_memory_are_not_in_a_peak():
    megabytes = 64
    torch.ones(2**22)  # freed, it teaches glibc to keep what is smaller

    def work() -> None:
        blocks = [torch.ones(2**18) for _ in range(megabytes)][::4]  # 1 MB each, of which a quarter stays
        blocks += [torch.ones(2**20) for _ in range(12)]  # 4 MB fit in no hole

    peaks = [peak(work, CPU) for _ in range(3)]  # whatever else the process does then only adds to them
    assert megabytes * 2**20 * 0.9 < min(peaks) < megabytes * 2**20 * 1.4, peaks


def test_a_peak_that_a_gpu_does_not_hold_is_unknown():
    def work() -> None:
        raise torch.OutOfMemoryError

    assert peak(work, CPU) is None


def test_start_up_is_drawn_with_and_without_a_repro(tmp_path):
    results = {"start_up_seconds_beyond_torch": {"subset": 0.4, "score": 1.2}}
    save_start_up(tmp_path / "without.png", results)
    save_start_up(tmp_path / "with.png", results | {"unchanged_repro_seconds": 2.6})
    sizes = [(tmp_path / f"{name}.png").stat().st_size for name in ("without", "with")]
    assert 0 < sizes[0] < sizes[1]


def test_what_flops_allow_is_compared_with_cpu_seconds_where_there_are_any():
    assert least_disturbed_ratio({"ratio": 2.0, "cpu_ratio": 3.0}) == 3.0
    assert least_disturbed_ratio({"ratio": 2.0}) == 2.0  # on a GPU


IMPORTS = """
import sys
import benchmarks.align, benchmarks.sample, benchmarks.gpu.run, benchmarks.__main__, tests.parity.networks
bare = [m for m in ("dvc", "mlflow", "prefect", "pydantic", "pandas", "scipy", "matplotlib", "PIL", "pytest") if m in sys.modules]
assert not bare, bare
import benchmarks.tokenize
assert "pydantic" not in sys.modules
import pipelines.stages.subset, pipelines.stages.tokenize, pipelines.stages.generator
import pipelines.stages.align, pipelines.stages.sample
assert "pandas" not in sys.modules
import pipelines.stages.references, pipelines.stages.score, pipelines.stages.table
slow = ("dvc", "mlflow", "prefect", "transformers", "timm", "torch_fidelity", "datasets", "open_clip", "torchvision")
slow += ("scipy", "skimage", "matplotlib")
loaded = [m for m in slow if m in sys.modules]
assert not loaded, loaded
"""


def test_benchmarks_need_a_bare_machine_and_stages_that_train_nothing_import_only_what_they_use():
    result = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_work_of_a_step_is_what_its_parts_are():
    """XL at 384, G = 8: the authors' schedule does 37 TFLOP an image, of which 8 are needed."""
    dim, layers, heads = OFFICIAL_GENERATORS["GPT-XL"]
    of = work.parts(GeneratorConfig(dim=dim, layers=layers, heads=heads, grid=24), TokenizerConfig())
    assert {name: round(value, 2) for name, value in of.items()} == WORK_OF_XL
    total = work.schedules(of, 8)
    assert total["authors"] == pytest.approx(37, rel=0.02) and total["ours"] == pytest.approx(8.2, rel=0.03)


def test_the_command_prints_every_measured_quantity_of_both_sides():
    results = {
        "ratio": 2.0,
        "ratio_range": [1.9, 2.1],
        "cpu_ratio": 2.2,
        "cpu_ratio_range": [2.1, 2.3],
        "flop_ratio": 2.5,
        "share_of_flop_ratio": 0.88,
        "packing": {"cpu_ratio": 1.6, "cpu_ratio_range": [1.5, 1.7], "equal_tokens": 1.0},
        "median_seconds": {"ours": 1.5, "authors": 3.0},
        "peak_bytes": {"ours": 2**20, "authors": None},  # a GPU could not hold theirs
        "flops": {"ours": 2e12, "authors": 5e12},
        "share_of_memory_limit": {"ours": 0.42, "authors": 0.16},
    }
    assert [" ".join(line.split()) for line in summary("align-xl", results)] == [
        "align-xl: 2.00 times as fast (1.90 to 2.10)",
        "by CPU time 2.20 (2.10 to 2.30)",
        "FLOPs allow 2.50; 88% of it",
        "packed weights, by CPU time beside plain ones: 1.60 (1.50 to 1.70); 100.0% equal tokens",
        "ours authors",
        "seconds, median 1.5 3",
        "peak memory, MiB 1.0 -",
        "TFLOP 2 5",
        "share of the memory's bandwidth 42% 16%",
    ]
    assert summary("pipeline", {"unchanged_repro_seconds": 2.5})[-1].split()[-1] == "2.50"
