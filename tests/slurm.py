"""A Slurm cluster whose nodes are all this machine, where Debian's slurmctld, slurmd and munge are installed."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PATH = f"{os.environ['PATH']}:/usr/sbin"
PROGRAMS = [shutil.which(name, path=PATH) for name in ("munged", "slurmctld", "slurmd", "sbatch")]
needs_slurm = pytest.mark.skipif(
    not all(PROGRAMS) or os.getuid() != 0,
    reason="there is no Slurm here, or nobody who may start it: slurmd wants root",
)
CONFIG = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
MpiDefault=none
ReturnToService=2
PartitionName=lab Nodes=ALL Default=YES State=UP
"""
NODE = "NodeName={name} NodeHostName={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} State=UNKNOWN\n"


@contextmanager
def slurm(nodes: int = 1) -> Iterator[dict[str, str]]:
    """Runs a cluster of so many nodes, and gives the environment in which Slurm's commands know it."""
    # not below pytest's folder, which is for one user alone: munged wants its socket in reach of all
    with tempfile.TemporaryDirectory(prefix="vapi-slurm-") as folder:
        Path(folder).chmod(0o755)
        with _cluster(Path(folder), nodes) as environment:
            yield environment


@contextmanager
def _cluster(folder: Path, nodes: int) -> Iterator[dict[str, str]]:
    munged, slurmctld, slurmd, _ = PROGRAMS
    host = socket.gethostname().partition(".")[0]
    controller, *ports = free_ports(1 + nodes)
    names = {f"node{number}": port for number, port in enumerate(ports, 1)}
    config = folder / "slurm.conf"
    lines = [NODE.format(name=name, host=host, port=port, cpus=os.cpu_count()) for name, port in names.items()]
    config.write_text(CONFIG.format(host=host, folder=folder, controller=controller) + "".join(lines))
    for name in ("state", *(f"spool-{name}" for name in names)):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    own = [
        f"--{name}={folder}/munge.{name.partition('-')[0]}"
        for name in ("key-file", "socket", "pid-file", "log-file", "seed-file")
    ]
    environment = {"SLURM_CONF": str(config)}
    with ExitStack() as stack:

        def start(*command: object) -> subprocess.Popen:
            log = stack.enter_context((folder / f"{Path(str(command[0])).name}.log").open("a"))
            server = stack.enter_context(subprocess.Popen(list(map(str, command)), stdout=log, stderr=log))
            stack.callback(server.terminate)
            return server

        munge = start(munged, "--foreground", *own)
        while not (folder / "munge.socket").exists():
            assert munge.poll() is None, (folder / "munged.log").read_text()
        servers = [start(slurmctld, "-D", "-f", config)]
        servers += [start(slurmd, "-D", "-f", config, "-N", name) for name in names]
        asked = {"env": os.environ | environment, "capture_output": True, "text": True, "check": False}
        while (
            subprocess.run(["sinfo", "--noheader", "--Node", "--format=%T"], **asked).stdout.split() != ["idle"] * nodes
        ):
            assert all(server.poll() is None for server in servers), (folder / "slurmctld.log").read_text()
        yield environment


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
