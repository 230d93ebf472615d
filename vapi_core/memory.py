"""Free memory, and how much of a batch is held at once: pure functions decide, so that plans can be tested."""

import ctypes
import os
from pathlib import Path

import torch

CPU_PART_BYTES = 2**27  # on a CPU more at a time is not faster
GPU_PARTS = 8  # a part of a step may hold this share of a GPU: a small one, beside weights, moments and activations

KEPT_BYTES = 2**27  # of a freed block on a CPU: it stays for the next operation, which would fetch it anew page by page
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that this process can still allocate: the GPU's with what torch holds unused, else main memory's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if not MEMINFO.is_file():  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    available = next(line for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
    free = int(available.split()[1]) * 1024
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return max(0, free)


def how_many(free: int, each: int, limit: int, share: float = 0.5) -> int:
    """How many things of `each` bytes to hold at once: what fits into a share of the free bytes; 1 at least."""
    return max(1, min(limit, int(free * share) // each))


def part_bytes(device: torch.device) -> int:
    """What one part of a step may hold, in bytes; not what is free now: how a step is cut decides its rounding."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // GPU_PARTS
    return CPU_PART_BYTES


def even_parts(count: int, most: int) -> list[slice]:
    """`count` things cut into as few parts of at most `most` as there can be; their lengths differ by one at most."""
    parts = -(-count // most)
    return [slice(count * i // parts, count * (i + 1) // parts) for i in range(parts)]


def give_back_from(size: int) -> None:
    """Has glibc give freed blocks back to the system from so many bytes on.

    Other C libraries go on as they are, and so do versions of glibc that refuse so many bytes: the second setting
    without the first would give back every large block at once.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt") and libc.mallopt(M_MMAP_THRESHOLD, size):
        libc.mallopt(M_TRIM_THRESHOLD, 4 * size)
