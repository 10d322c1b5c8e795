"""Badges and the Colab cell, rendered from one address."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from tutorkit.badges import badge_lines, colab_cell, repository

ADDRESS = "https://github.com/someone/kit"


def pyproject(folder: Path, urls: str) -> Path:
    path = folder / "pyproject.toml"
    path.write_text(f'[project]\nname = "x"\n[project.urls]\n{urls}\n', encoding="utf-8")
    return path


def test_a_missing_address_is_none(tmp_path: Path) -> None:
    assert repository(pyproject(tmp_path, '# Repository = "https://github.com/OWNER/NAME"')) is None


@pytest.mark.parametrize("written", [ADDRESS, ADDRESS + "/", ADDRESS + ".git"])
def test_an_address_is_read(tmp_path: Path, written: str) -> None:
    assert repository(pyproject(tmp_path, f'Repository = "{written}"')) == ADDRESS


@pytest.mark.parametrize(
    "written", ["", "https://example.org/a/b", "github.com/a/b", f"{ADDRESS}/x"]
)
def test_another_address_is_refused(tmp_path: Path, written: str) -> None:
    with pytest.raises(ValueError, match="expected an address like .*Correct it in pyproject"):
        repository(pyproject(tmp_path, f'Repository = "{written}"'))


def run_cell(monkeypatch: pytest.MonkeyPatch, address: str | None, in_colab: bool) -> list[list]:
    """Run the cell with a pip that only notes its arguments; returns them."""
    calls: list[list] = []
    monkeypatch.setattr(subprocess, "check_call", calls.append)
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    if in_colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    names: dict = {}
    exec(compile(colab_cell(address), "cell", "exec"), names)
    for name, value in names.items():
        # Anything else would be taken for a parameter of the report.
        assert name.startswith("_") or callable(value) or isinstance(value, types.ModuleType)
    for call in calls:
        assert call[:4] == [sys.executable, "-m", "pip", "install"]
        assert not any("torch" in word for word in call)
        assert "--upgrade" not in call
    return [call[4:] for call in calls]


@pytest.mark.parametrize("address", [None, ADDRESS])
def test_elsewhere_the_cell_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    address: str | None,
) -> None:
    (tmp_path / "fork" / "tutorkit").mkdir(parents=True)
    (tmp_path / "fork" / "tutorkit" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    assert run_cell(monkeypatch, address, in_colab=False) == []
    assert capsys.readouterr() == ("", "")


def test_in_colab_the_cell_installs_from_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_cell(monkeypatch, ADDRESS, in_colab=True) == [
        ["--quiet", "gguf", "jaxtyping"],
        ["--quiet", "--no-deps", "git+" + ADDRESS],
    ]


def test_in_colab_without_an_address_it_installs_a_clone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_cell(monkeypatch, None, in_colab=True) == []
    assert "!git clone" in capsys.readouterr().out
    (tmp_path / "fork" / "tutorkit").mkdir(parents=True)
    (tmp_path / "fork" / "tutorkit" / "__init__.py").touch()
    assert run_cell(monkeypatch, None, in_colab=True) == [
        ["--quiet", "gguf", "jaxtyping"],
        ["--quiet", "--no-deps", "./fork"],
    ]
    assert capsys.readouterr().out == ""


def test_badges_point_at_the_notebooks() -> None:
    lines = badge_lines(ADDRESS, ["05_imdb_report"])
    assert "(https://mybinder.org/v2/gh/someone/kit/main?urlpath=lab/tree/notebooks)" in lines
    assert (
        "(https://colab.research.google.com/github/someone/kit/blob/main/"
        "notebooks/05_imdb_report.ipynb)" in lines
    )


def test_without_an_address_there_is_no_link() -> None:
    lines = badge_lines(None, ["05_imdb_report"])
    assert "fork" in lines
    assert "http" not in lines
