"""Build the lessons: percent scripts in, executed and scrubbed notebooks out.

A lesson is a pair: `notebooks/NN_topic.py`, which is written and reviewed, and
`notebooks/NN_topic.ipynb`, which is generated from it and carries the outputs.

    python -m tutorkit.notebooks build            every lesson
    python -m tutorkit.notebooks build 05         the lesson whose name begins with 05
    python -m tutorkit.notebooks badges           Colab cells and README badges from pyproject.toml
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tutorkit.badges import ROOT, badge_lines, colab_cell, repository
from tutorkit.tables import between_marks

NOTEBOOKS = ROOT / "notebooks"

# Tags a lesson's cells may carry: a misspelt one would be passed over by every tool in silence.
TAGS = {
    "check",
    "colab",
    "exercise",
    "exercise-setup",
    "nbval-ignore-output",
    "nbval-skip",
    "parameters",
    "raises-exception",
    "skip-execution",
    "solution",
}
# What execution and editors leave behind that differs from run to run.
SCRUBBED_KEYS = [
    "metadata.language_info.version",
    "metadata.signature",
    "metadata.widgets",
    "cell.metadata.ExecuteTime",
    "cell.metadata.collapsed",
    "cell.metadata.execution",
    "cell.metadata.lines_to_next_cell",
    "cell.metadata.scrolled",
]
RUNS_PREFIX = "tutorkit-runs-"  # of the temporary folder that a built report runs in
# A notebook that inherits the first takes itself for one that a person watches in JupyterLab, and
# one that inherits the second may draw its figures somewhere else.
OF_A_SESSION = ("JPY_SESSION_NAME", "MPLBACKEND")


def lesson_scripts(names: list[str] | None = None, folder: Path = NOTEBOOKS) -> list[Path]:
    """The percent scripts of the lessons, in order.

    Args:
        names: beginnings of the wanted lessons' names, such as `05`; none means all.
        folder: where the lessons are.

    Raises:
        ValueError: if a name fits no lesson.
    """
    scripts = sorted(folder.glob("[0-9][0-9]_*.py"))
    for name in names or []:
        if not any(script.stem.startswith(name) for script in scripts):
            known = ", ".join(script.stem for script in scripts) or "none yet"
            raise ValueError(f"no lesson's name begins with {name!r}; the lessons are: {known}.")
    return [s for s in scripts if not names or any(s.stem.startswith(name) for name in names)]


def read_script(script: Path, address: str | None) -> Any:
    """A lesson's percent script as a notebook with its Colab cell and reproducible cell ids.

    Args:
        script: the lesson's `.py` file.
        address: the repository's public address, which the Colab cell installs from.

    Returns:
        A notebook node without outputs.
    """
    import jupytext
    from nbformat.v4 import new_code_cell

    notebook = jupytext.read(script)
    notebook.metadata.update(
        jupytext={
            "formats": "ipynb,py:percent",
            # Without the filter every script would change with every release of jupytext.
            "notebook_metadata_filter": "-jupytext.text_representation.jupytext_version",
        },
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
    )
    colab = [cell for cell in notebook.cells if "colab" in cell.metadata.get("tags", [])]
    if not colab:
        colab = [new_code_cell(metadata={"tags": ["colab", "nbval-ignore-output"]})]
        first_code = [cell.cell_type for cell in notebook.cells].index("code")
        notebook.cells.insert(first_code, colab[0])
    colab[0].source = colab_cell(address)
    for cell in notebook.cells:
        if "solution" in cell.metadata.get("tags", []):
            # Folded in JupyterLab: a reader decides when to look.
            cell.metadata["jupyter"] = {"source_hidden": True}
    set_ids(notebook.cells)
    return notebook


def set_ids(cells: list[Any]) -> None:
    """Give each cell an id made from its source: a rebuilt notebook differs where its cells do.

    Args:
        cells: all cells of a notebook, changed in place.
    """
    taken: set[str] = set()
    for cell in cells:
        cell.id = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        while cell.id in taken:
            cell.id = hashlib.sha256(cell.id.encode()).hexdigest()[:8]
        taken.add(cell.id)


def kernel_of_this_interpreter() -> type:
    """A kernel manager that starts the running Python, whatever kernels are installed.

    A notebook asks for `python3`. Outside a virtual environment, or with JUPYTER_PATH set, the
    kernel found under that name can belong to another Python that has no tutorkit.
    """
    import zmq
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import Unicode

    class ThisInterpreter(AsyncKernelManager):
        # With the default, "disabled", every kernel begins by warning of an open local port.
        transport_encryption = Unicode("auto" if zmq.has("curve") else "disabled")

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())

        async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
            # papermill's last question is what language this is, and at the reply it shuts the
            # kernel down, which begins with an interrupt. One that comes before the kernel is
            # through with that question makes it print an error after a good run.
            await asyncio.sleep(0.2)
            await super().shutdown_kernel(now=now, restart=restart)

    return ThisInterpreter


def reader_environment(runs: str) -> dict[str, str]:
    """The environment of a reader without a hub, a local mirror or a JupyterLab around.

    Args:
        runs: folder for what a report writes.
    """
    unset = ("TUTORKIT_DATA", *OF_A_SESSION)
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return {**kept, "HF_HUB_OFFLINE": "1", "TUTORKIT_RUNS": runs}


def execute(notebook: Any, folder: Path) -> None:
    """Run every cell in place, as a reader without a hub or a local mirror would.

    Args:
        notebook: the notebook node that receives the outputs.
        folder: the working folder of the kernel.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook,
        timeout=1200,
        startup_timeout=180,
        # A printed line may come in two pieces or in one, as the clock has it.
        coalesce_streams=True,
        kernel_manager_class=kernel_of_this_interpreter(),
        resources={"metadata": {"path": str(folder)}},
    )
    with tempfile.TemporaryDirectory(prefix=RUNS_PREFIX) as runs:
        client.execute(env=reader_environment(runs))


def scrub(notebook: Any) -> Any:
    """The notebook without what changes from run to run; outputs and counts stay.

    Strict nbval compares nothing in a cell without an execution count, so counts are kept.
    """
    from nbstripout import strip_output

    return strip_output(notebook, True, True, True, extra_keys=SCRUBBED_KEYS)


def machine_paths(notebook: Any) -> list[str]:
    """Outputs that name a folder of this machine, as `cell N: text`.

    Args:
        notebook: an executed notebook node.

    Returns:
        One line for each such output; images are not looked into.
    """
    folders = (ROOT, Path.home(), Path(tempfile.gettempdir(), RUNS_PREFIX))
    private = [str(path) for path in folders if len(path.parts) > 1]
    found = []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            shown = dict(output)
            data = output.get("data", {})
            shown["data"] = {kind: data[kind] for kind in data if not kind.startswith("image/")}
            text = json.dumps(shown)
            found += [f"cell {number}: {text[:300]}" for path in private if path in text][:1]
    return found


def write_whole(path: Path, text: str) -> None:
    """Write beside, then rename: an interrupted run leaves the old file."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8", newline="\n")
    os.replace(beside, path)


def build(script: Path) -> None:
    """Execute a lesson and write its pair: the script in normal form and the notebook.

    Args:
        script: the lesson's `.py` file.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails; nothing is written then.
        ValueError: if an output names a folder of this machine; nothing is written then.
    """
    import jupytext
    import nbformat

    notebook = read_script(script, repository())
    normal_form = jupytext.writes(notebook, fmt="py:percent")
    execute(notebook, script.parent)
    leaks = machine_paths(notebook)
    if leaks:
        raise ValueError(
            f"{script.stem} shows folders of this machine; print names or relative paths instead.\n"
            + "\n".join(leaks)
        )
    write_whole(script, normal_form)
    write_whole(script.with_suffix(".ipynb"), nbformat.writes(scrub(notebook)) + "\n")


def write_badges(root: Path = ROOT) -> None:
    """Render the README's badges and the Colab cell of every notebook from pyproject.toml.

    Args:
        root: the repository.
    """
    import jupytext
    import nbformat

    address = repository(root / "pyproject.toml")
    scripts = lesson_scripts(folder=root / "notebooks")
    readme = root / "README.md"
    lines = badge_lines(address, [script.stem for script in scripts])
    write_whole(readme, between_marks(readme.read_text(encoding="utf-8"), "badges", lines))
    for script in scripts:
        write_whole(script, jupytext.writes(read_script(script, address), fmt="py:percent"))
    stored = [script.with_suffix(".ipynb") for script in scripts]
    for path in [*stored, *sorted((root / "notebooks" / "exercises").glob("*.ipynb"))]:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if "colab" in cell.metadata.get("tags", []):
                # Outside Colab the cell prints nothing, so the stored outputs stay true.
                cell.source = colab_cell(address)
        set_ids(notebook.cells)
        write_whole(path, nbformat.writes(notebook) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tutorkit.notebooks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="execute lessons and store their outputs")
    building.add_argument("names", nargs="*", help="beginnings of lesson names; none means all")
    commands.add_parser("badges", help="render badges and Colab cells from pyproject.toml")
    chosen = parser.parse_args(arguments)
    from nbclient.exceptions import CellExecutionError

    try:
        if chosen.command == "badges":
            write_badges()
            return 0
        for script in lesson_scripts(chosen.names):
            print(f"{script.stem}: running …", flush=True)
            start = time.perf_counter()
            build(script)
            print(f"{script.stem}: written after {time.perf_counter() - start:.0f} s", flush=True)
    except (CellExecutionError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
