"""A checkout of the repository for tests of whole runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


class Checkout:
    """A copy of the repository with its own git and DVC, and what a user types in it."""

    def __init__(self, path: Path):
        self.path = path
        for name in (".dvc/config", "dvc.yaml", ".dvcignore", ".gitignore", "params.yaml", "reports/plan.md"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, path / name)
        shutil.copytree(ROOT / "reports/plans", path / "reports/plans")
        ignore = shutil.ignore_patterns("__pycache__")
        for name in ("pipelines", "vapi_core"):
            shutil.copytree(ROOT / name, path / name, ignore=ignore)
        self.run("git", "init", "--quiet")

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.path}/mlflow.db",
            "DVC_NO_ANALYTICS": "1",
        }

    def run(self, *command: str) -> subprocess.CompletedProcess:
        environment = self.environment()
        return subprocess.run(command, cwd=self.path, env=environment, capture_output=True, text=True, check=False)

    def set_params(self, change) -> None:
        path = self.path / "params.yaml"
        path.write_text(yaml.safe_dump(change(yaml.safe_load(path.read_text())), sort_keys=False))

    def lock(self) -> dict:
        return yaml.safe_load((self.path / "dvc.lock").read_text())["stages"]
