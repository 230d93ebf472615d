"""`vapi node`: this machine's processes of every stage that the first node starts, until Ctrl-C.

Each stage is joined by a process of its own, `python -m pipelines.commands.node JOB`, which ends with this one.
"""

import json
import os
import socket
import sys
import time

from pipelines import processes
from pipelines.frame.launch import run_with_others
from pipelines.frame.nodes import LOOK_SECONDS, announced, joined, rendezvous
from pipelines.messages import one_message


def node() -> None:
    """Joins one stage after the other. Raises VapiError where VAPI_RENDEZVOUS is no address."""
    host, port = rendezvous()
    print(f"waits for stages of the first node at {host}:{port}, until Ctrl-C.", flush=True)
    last = ""
    while True:
        job = announced()
        if job is None or job["id"] == last:
            time.sleep(LOOK_SECONDS)
            continue
        last = job["id"]
        stage = "@".join(job["arguments"])
        print(f"{stage} begins.", flush=True)
        command = [sys.executable, "-m", "pipelines.commands.node", json.dumps(job)]
        quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"} | os.environ  # or a store that ends takes forty lines
        code = processes.run(command, f"node-{socket.gethostname()}-{os.getpid()}", quiet, _show)
        print(f"{stage} ended {'well' if code == 0 else f'with code {code}'}.", flush=True)


def _show(line: str) -> None:
    print(line, flush=True)


@one_message
def main() -> None:
    job = json.loads(sys.argv[1])
    os.environ |= job["environment"]
    with joined(job) as group:
        if group is None:
            print("the stage has all its nodes: this one is not needed.")
        else:
            run_with_others(group, ["--module", "pipelines.stages", *group.arguments])


if __name__ == "__main__":
    sys.exit(main())
