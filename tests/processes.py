"""Several real processes for a test, in a group as torchrun makes it, on gloo."""

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed import TCPStore

from vapi_core import distributed

# children are forked from a server that has imported everything and computed nothing, so that they start at once
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.test_distributed", "torch.distributed.checkpoint"])


def run_on(processes: int, function: Callable, *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns on each of so many processes, by rank. One that raises fails the test."""
    store = TCPStore("127.0.0.1", 0, is_master=True)
    queue = CONTEXT.SimpleQueue()
    children = [
        CONTEXT.Process(target=_child, args=(rank, processes, store.port, queue, function, arguments))
        for rank in range(processes)
    ]
    for child in children:
        child.start()
    results = dict(queue.get() for _ in children)
    for child in children:
        child.join()
    errors = [result for result in results.values() if isinstance(result, Exception)]
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(processes)]


def _child(rank: int, processes: int, port: int, queue: Any, function: Callable, arguments: tuple) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    torch.set_num_threads(1)
    try:
        distributed.start(torch.device("cpu"))
        result = function(*arguments)
    except Exception as error:
        result = error
    queue.put((rank, result))
    distributed.stop()
