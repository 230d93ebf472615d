"""Servers that a test starts as DVC's remote: S3, which moto plays, and SSH by the system's own sshd.

Each gives the settings of a remote, as `dvc remote modify` calls them.
"""

import getpass
import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dvc.config import Config

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
needs_sshd = pytest.mark.skipif(SSHD is None, reason="there is no sshd here (Debian's openssh-server)")
SSHD_CONFIG = """
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
Subsystem sftp internal-sftp
"""


@contextmanager
def s3_store() -> Iterator[dict[str, str]]:
    """An empty bucket of an S3 server."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it tells every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    login = {"access_key_id": "lab", "secret_access_key": "secret"}
    address = {"endpointurl": f"http://{host}:{port}", "region": "us-east-1"}
    try:
        boto3.client(
            "s3",
            endpoint_url=address["endpointurl"],
            region_name=address["region"],
            **{f"aws_{name}": value for name, value in login.items()},
        ).create_bucket(Bucket="lab")
        yield {"url": "s3://lab/store", **address, **login}
    finally:
        server.stop()


@contextmanager
def ssh_store(folder: Path) -> Iterator[dict[str, str]]:
    """An empty folder, reached by an sshd that knows one key, of the user who runs the test."""
    assert SSHD is not None
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder, port=port))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # which sshd wants when it is started as root
    command = [SSHD, "-D", "-e", "-f", folder / "sshd_config"]
    with (folder / "sshd.log").open("w") as log, subprocess.Popen(command, stderr=log) as server:
        try:
            while not _greets(port):
                assert server.poll() is None, (folder / "sshd.log").read_text()
            login = {"user": getpass.getuser(), "keyfile": str(folder / "user")}
            yield {"url": f"ssh://127.0.0.1:{port}{folder}/store", **login}
        finally:
            server.terminate()


def _greets(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def set_remote(root: Path, settings: dict[str, str]) -> None:
    """Makes a store the default remote of a repository, in the file that git has."""
    with Config(str(root / ".dvc")).edit("repo") as config:
        config["core"] = {"remote": "store"}
        config["remote"] = {"store": settings}
