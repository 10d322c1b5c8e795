"""Ways into the notebooks that depend on where the repository is published.

The address is one value, `Repository` under `[project.urls]` in pyproject.toml. The README's
badges and the first code cell of every lesson are rendered from it by `make badges`.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# pip leaves what is there as it is, and the project comes without its dependencies: nothing that
# Colab brings is replaced, torch least of all. Names begin with _ because the report takes any
# other variable that is set before its parameters are read for a parameter of its own.
CELL = """\
# In Colab: install what is missing there, never torch. Elsewhere this cell does nothing.
import sys

if "google.colab" in sys.modules:
    from subprocess import check_call

    _pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    check_call([*_pip, "gguf", "jaxtyping"])
    check_call([*_pip, "--no-deps", "git+ADDRESS"])"""

CELL_WITHOUT_ADDRESS = """\
# In Colab: install what is missing there, never torch. Elsewhere this cell does nothing.
import sys

if "google.colab" in sys.modules:
    from pathlib import Path
    from subprocess import check_call

    _pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    _clones = [f"./{folder.parent}" for folder in Path().glob("*/tutorkit")]
    if _clones:
        check_call([*_pip, "gguf", "jaxtyping"])
        check_call([*_pip, "--no-deps", _clones[0]])
    else:
        print("Run `!git clone` with the address of your fork, then this cell again.")"""

FROM_A_FORK = """\
The project has no public address yet, so there are no badges to click. For a fork of your own on
GitHub: set `Repository` under `[project.urls]` in `pyproject.toml` to its address, run
`make badges`, commit and push; Binder and Colab badges for your fork then stand here. Without
that, Colab opens any notebook of a public fork (File, Open notebook, GitHub): run `!git clone` with
the fork's address in a new cell, then the notebook's first code cell, which installs that clone."""


def repository(pyproject: Path = ROOT / "pyproject.toml") -> str | None:
    """The repository's public address, or None while it is not set.

    Args:
        pyproject: the file that holds it.

    Returns:
        The address without a trailing slash or `.git`.

    Raises:
        ValueError: if it is not the address of a GitHub repository, the host that the Colab and
            Binder links are made for.
    """
    urls = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"].get("urls", {})
    address = urls.get("Repository")
    if address is None:
        return None
    address = address.rstrip("/").removesuffix(".git")
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address):
        raise ValueError(
            f"Repository in [project.urls] is {address!r}, expected an address like "
            "https://github.com/OWNER/NAME. Correct it in pyproject.toml and run `make badges`."
        )
    return address


def colab_cell(address: str | None) -> str:
    """The source of the generated first code cell of every lesson.

    Args:
        address: the repository's public address. With None the cell installs from a clone beside
            the notebook, and where there is none says how to get it.

    Returns:
        Python source that does something in Colab only.
    """
    return CELL.replace("ADDRESS", address) if address else CELL_WITHOUT_ADDRESS


def badge_lines(address: str | None, lessons: list[str]) -> str:
    """The README's text between the badge markers.

    Args:
        address: the repository's public address, or None while it is not set.
        lessons: names of the lessons, such as `05_imdb_report`.

    Returns:
        Markdown: a Binder badge and a Colab badge for each lesson; without an address, how to get
        there from a fork.
    """
    if address is None:
        return FROM_A_FORK
    path = address.removeprefix("https://github.com/")
    binder = f"https://mybinder.org/v2/gh/{path}/main?urlpath=lab/tree/notebooks"
    badges = [f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})"]
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    for lesson in lessons:
        link = f"https://colab.research.google.com/github/{path}/blob/main/notebooks/{lesson}.ipynb"
        badges.append(f"[![Open {lesson} in Colab]({image})]({link})")
    return "\n".join(badges)
