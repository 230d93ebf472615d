from types import SimpleNamespace

import pytest
import torch

from vapi_core import memory


def test_as_many_as_fit_into_a_share_of_memory_but_one_at_least():
    assert memory.how_many(1000, each=100, limit=50) == 5
    assert memory.how_many(1000, each=100, limit=3) == 3
    assert memory.how_many(1000, each=100, limit=50, share=1.0) == 10
    assert memory.how_many(0, each=100, limit=50) == 1


def test_a_count_is_cut_into_even_parts():
    assert memory.even_parts(7, 3) == [slice(0, 2), slice(2, 4), slice(4, 7)]
    assert memory.even_parts(4, 9) == [slice(0, 4)]


def test_free_memory_is_what_the_system_says_or_less_where_a_container_has_a_limit(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       8000 kB\nMemFree:  10 kB\nMemAvailable:    5000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_bytes(torch.device("cpu")) == 5000 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(torch.device("cpu")) == 5000 * 1024
    (tmp_path / "memory.max").write_text("4000\n")
    assert memory.free_bytes(torch.device("cpu")) == 3000


@pytest.mark.parametrize("takes", [True, False])
def test_a_glibc_that_refuses_the_first_setting_is_left_as_it_is(monkeypatch, takes):
    asked = []
    libc = SimpleNamespace(mallopt=lambda setting, size: asked.append(setting) or takes)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: libc)
    memory.give_back_from(2**27)
    assert asked == [memory.M_MMAP_THRESHOLD] + [memory.M_TRIM_THRESHOLD] * takes
