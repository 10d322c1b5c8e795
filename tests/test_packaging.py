"""The ways to install the project name the same packages."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {"pytorch": "torch", "pytorch-cpu": "torch", "playwright-python": "playwright"}
# What Colab brings in late 2026, where the lessons' first cell installs only what is missing.
COLAB = {
    "python": "3.13",
    "transformers": "5.15",
    "datasets": "4.0",
    "ipywidgets": "7.7",
    "numpy": "2.1",
}


def ranges(lines: list[str]) -> dict[str, str]:
    """Package name to version range, under PyPI's names."""
    found = {}
    for line in lines:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        found[CONDA_NAMES.get(name, name)] = str(requirement.specifier)
    assert len(found) == len(lines), "a package is named twice"
    return found


DEPENDENCIES = ranges(PROJECT["dependencies"])
TEST = ranges(PROJECT["optional-dependencies"]["test"])
ENGINES = ranges(PROJECT["optional-dependencies"]["engines"])


@pytest.mark.parametrize(
    ("path", "expected"),
    [("environment.yml", DEPENDENCIES | TEST), ("binder/environment.yml", DEPENDENCIES)],
)
def test_conda_environments_name_the_packages_of_pyproject(
    path: str, expected: dict[str, str]
) -> None:
    environment = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    found = ranges(environment["dependencies"])
    assert found.pop("python") == PROJECT["requires-python"]
    # The project itself comes by pip, and neither conda package of PyTorch may stand in for both.
    assert found.pop("pip") == ""
    assert found == expected


def test_constraints_lie_in_the_ranges_and_cover_them() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = ranges([line for line in lines if line and not line.startswith("#")])
    assert pins["torch"] == "==2.13.0"
    for name, allowed in (DEPENDENCIES | TEST | ENGINES).items():
        version = pins[name].removeprefix("==")
        assert Requirement(name + allowed).specifier.contains(version), f"{name} {version}"


def test_what_colab_brings_is_inside_the_ranges() -> None:
    allowed = DEPENDENCIES | {"python": PROJECT["requires-python"]}
    for name, version in COLAB.items():
        assert Requirement(name + allowed[name]).specifier.contains(Version(version)), name


def test_every_imported_package_is_declared() -> None:
    names = {"sklearn": "scikit-learn", "yaml": "pyyaml"}
    # ipykernel cannot do without the first four, transformers and matplotlib not without the others
    indirect = {"IPython", "jupyter_client", "traitlets", "zmq", "tokenizers", "PIL"}
    found = set()
    for path in (ROOT / "tutorkit").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            match = re.match(r"\s*(?:import|from) (\w+)(?:[\w.]*)(?: import .*| as .*)?$", line)
            if match and match[1] not in sys.stdlib_module_names:
                found.add(match[1])
    found -= {"tutorkit", *indirect}
    declared = {canonicalize_name(name) for name in DEPENDENCIES | TEST | ENGINES}
    assert {canonicalize_name(names.get(name, name)) for name in found} <= declared


def test_no_address_of_a_registry_is_named() -> None:
    names = ["pyproject.toml", "constraints.txt", "environment.yml", "Makefile", ".ci/run"]
    names += ["binder/environment.yml", "binder/postBuild"]
    for name in names:
        text = (ROOT / name).read_text(encoding="utf-8")
        text = text.replace("https://github.com/OWNER/NAME", "")
        assert not re.search(r"index-url|find-links|https?://", text), name


def test_data_files_of_the_package_are_packaged() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]["package-data"]["tutorkit"]
    packaged = {path for pattern in patterns for path in (ROOT / "tutorkit").glob(pattern)}
    data = {
        path
        for path in (ROOT / "tutorkit").rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert len(data) >= 3
    assert data <= packaged


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, tutorkit; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert finished.stdout.strip() == "set()"
