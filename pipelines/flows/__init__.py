"""Orchestration: the DVC graph and sweeps as Prefect flows. The only package that imports prefect."""

import os
import sys
from pathlib import Path

from pipelines.tracking.stores import bypass_proxies

# before prefect is imported
bypass_proxies(os.environ)
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = "30"  # seconds, whatever the user's shell says: `lost` builds on it
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")  # of a flow without a server

# `dvc` is the one beside this Python, whether its environment is activated or not
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
