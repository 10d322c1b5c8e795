"""JupyterLab as a learner has it, on a server of its own over a copy of the lessons."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from ipykernel.kernelspec import write_kernel_spec

from tutorkit.downloads import cache_dir

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT = 90  # seconds; on a machine with nothing else to do it takes two
NBGRADER = [
    f"nbgrader.server_extensions.{name}"
    for name in ("formgrader", "validate_assignment", "assignment_list", "course_list")
]
DROPPED = ("TUTORKIT_DATA", "MPLBACKEND", "JPY_SESSION_NAME")  # what would change a lesson


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


class Server:
    """JupyterLab on loopback over a copy of the lessons, with nothing of the user's in its reach.

    Its kernels run the Python that runs the tests. nbgrader, which only the tests need, is switched
    off as `make lab` does, and so are the questions about news.

    Attributes:
        notebooks: the folder that it serves.
        address: where it answers, such as `http://127.0.0.1:40001`.
        log: the file that it writes its messages to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.notebooks, self.log = folder, folder / "notebooks", folder / "server.log"
        shutil.copytree(
            ROOT / "notebooks",
            self.notebooks,
            ignore=shutil.ignore_patterns("reports", ".ipynb_checkpoints"),
        )
        self._as_in_a_fresh_clone()
        config = folder / "jupyter_config_dir"
        _write(
            config / "jupyter_server_config.json",
            {"ServerApp": {"jpserver_extensions": dict.fromkeys(NBGRADER, False)}},
        )
        _write(
            config / "labconfig" / "page_config.json",
            {"disabledExtensions": {"@jupyter/nbgrader": True}},
        )
        settings = config / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
        _write(
            settings / "notification.jupyterlab-settings",
            {"fetchNews": "false", "checkForUpdates": False},
        )
        # The first place where a kernel is looked for; a `python3` of another Python may be there.
        write_kernel_spec(str(folder / "jupyter_path" / "kernels" / "python3"))

    def files(self) -> dict[str, str]:
        """Every served file with its SHA-256, less the copies that JupyterLab keeps to revert to.

        It makes such a copy of each notebook that it opens, in `.ipynb_checkpoints`.
        """
        return {
            str(path.relative_to(self.notebooks)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.notebooks.rglob("*"))
            if path.is_file() and path.parent.name != ".ipynb_checkpoints"
        }

    def add(self, name: str, *sources: str) -> str:
        """Put a notebook of these code cells beside the lessons; returns its path for a page."""
        cells = [
            {"cell_type": "code", "id": f"cell-{i}", "metadata": {}, "source": source.strip(),
             "outputs": [], "execution_count": None}
            for i, source in enumerate(sources)
        ]  # fmt: skip
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        version = {"nbformat": 4, "nbformat_minor": 5}
        _write(
            self.notebooks / name,
            {"cells": cells, "metadata": {"kernelspec": kernel}, **version},
        )
        return name

    def _as_in_a_fresh_clone(self) -> None:
        """Give the files the times of a checkout, which writes them in the order of their names.

        Jupytext takes a paired notebook's cells from whichever of the two files is newer.
        """
        start = time.time() - 3600
        for i, path in enumerate(sorted(self.notebooks.rglob("*"))):
            os.utime(path, (start + i, start + i))

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in DROPPED}
        own = {
            name: str(self.folder / name.lower())
            for name in (
                "HOME",
                "IPYTHONDIR",
                "JUPYTER_CONFIG_DIR",
                "JUPYTER_DATA_DIR",
                "JUPYTER_PATH",
                "JUPYTER_RUNTIME_DIR",
                "TUTORKIT_RUNS",
            )
        }
        return {
            **kept,
            **own,
            "HF_HUB_OFFLINE": "1",
            "TUTORKIT_CACHE": str(cache_dir()),  # the weights, which are under the real home
        }

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it stopped or gave no answer; with its last messages.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        command = [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={self.notebooks}",
            "--IdentityProvider.token=",
            "--LabApp.expose_app_in_browser=True",
        ]
        self._log = self.log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            command, cwd=self.folder, env=self._environment(), stdout=self._log, stderr=self._log
        )
        end = time.monotonic() + START_LIMIT
        while time.monotonic() < end and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.address}/api/status", timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)
        self.stop()
        tail = self.log.read_text(encoding="utf-8")[-2000:]
        raise RuntimeError(f"JupyterLab gave no answer in {START_LIMIT} s. Its log ends:\n{tail}")

    def stop(self) -> None:
        """End it and its kernels."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
