"""Run the report notebook from the command line and leave a run directory.

    python -m tutorkit.report
    python -m tutorkit.report -p dataset imdb -p model smollm2 -p epochs 1
    python -m tutorkit.report -o runs/my-run -p seed 1

Each `-p` sets one name of the notebook's `parameters` cell. The run directory receives the record
(`metrics.json` and the files beside it), `report.ipynb` and `report.html`.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from tutorkit.notebooks import NOTEBOOKS, OF_A_SESSION, ROOT, kernel_of_this_interpreter

REPORT = NOTEBOOKS / "05_imdb_report.ipynb"


def parse_value(text: str) -> Any:
    """The value of a `-p name value` pair.

    Args:
        text: a number, True, False, None (or null), a quoted string or a list in brackets is taken
            for what it is; anything else is a plain string.
    """
    words = {"null": None, "true": True, "false": False}
    if text in words:
        return words[text]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parameter_defaults(notebook: Path) -> dict[str, Any]:
    """Names and default values in the notebook's `parameters` cell.

    Python's own parser reads the cell: papermill's skips a line whose comment holds a `=`.

    Args:
        notebook: the `.ipynb` file.
    """
    import nbformat

    defaults = {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            for line in ast.parse(cell.source).body:
                if isinstance(line, ast.AnnAssign) and line.value is not None:
                    defaults[ast.unparse(line.target)] = ast.literal_eval(line.value)
                elif isinstance(line, ast.Assign):
                    defaults[ast.unparse(line.targets[0])] = ast.literal_eval(line.value)
    return defaults


def check_names(names: list[str], allowed: list[str]) -> None:
    """Refuse parameter names that the notebook does not have; papermill would only warn.

    Args:
        names: the names to set.
        allowed: the names in the `parameters` cell.

    Raises:
        ValueError: naming the unknown ones, close matches, and what is allowed.
    """
    unknown = [name for name in names if name not in allowed]
    if unknown:
        close = [guess for name in unknown for guess in difflib.get_close_matches(name, allowed, 1)]
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise ValueError(
            f"the report has no parameter {', '.join(unknown)}.{hint} "
            f"Its parameters are: {', '.join(allowed)}."
        )


def relative(path: Path) -> str:
    """The path as seen from the working folder where it lies inside it, else the whole path."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


class Progress:
    """Writes a notebook's progress to a terminal: its headings with times, its prints below them.

    It is the file that papermill copies the notebook's standard output to, and the hook that runs
    before each cell.
    """

    def __init__(self, notebook: Any) -> None:
        self.start = time.perf_counter()
        self.headings = headings_before(notebook)
        self.shown = ""
        self.at_line_start = True

    def cell_starts(self, cell: Any, cell_index: int) -> None:
        """Print the heading above a cell when the run gets there."""
        heading = self.headings.get(cell.get("id"), self.shown)
        if heading != self.shown:
            self.shown = heading
            if not self.at_line_start:
                sys.stdout.write("\n")
                self.at_line_start = True
            seconds = time.perf_counter() - self.start
            sys.stdout.write(f"[{seconds:4.0f} s] {heading}\n")
            sys.stdout.flush()

    def write(self, text: str) -> int:
        """Copy what a cell prints, indented."""
        for line in text.splitlines(keepends=True):
            sys.stdout.write("         " * self.at_line_start + line)
            self.at_line_start = line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        """Show what was written."""
        sys.stdout.flush()


def headings_before(notebook: Any) -> dict[str, str]:
    """For each code cell of a notebook, by id, the second-level heading that it stands under."""
    heading, found = "", {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            titles = [line[3:] for line in cell.source.splitlines() if line.startswith("## ")]
            heading = titles[-1].strip() if titles else heading
        elif heading:
            found[cell.id] = heading
    return found


def result_line(metrics: dict[str, Any], html_path: Path) -> str:
    """The one line a run ends with.

    Args:
        metrics: the content of `metrics.json`.
        html_path: where the report is.
    """
    test = metrics["test"]
    low, high = test["accuracy_ci95"]
    line = (
        f"{metrics['dataset']['name']} · {metrics['model']['name']}: "
        f"accuracy {test['accuracy']:.3f} ({low:.3f}–{high:.3f}) on {test['n']:,} test rows"
    )
    if metrics["baseline"]:
        name, accuracy = max(metrics["baseline"].items(), key=lambda item: item[1])
        line += f", {name} {accuracy:.3f}"
    return f"{line}; report: {relative(html_path)}"


def run(parameters: dict[str, Any], run_dir: Path, notebook: Path = REPORT) -> dict[str, Any]:
    """Execute the report notebook with these parameters and write its HTML beside it.

    Args:
        parameters: values for names of the notebook's `parameters` cell.
        run_dir: the folder that receives `report.ipynb`, `report.html` and the run record.
        notebook: the notebook to run.

    Returns:
        The content of the `metrics.json` that the notebook wrote.

    Raises:
        papermill.PapermillExecutionError: if a cell fails; the notebook up to there is kept.
    """
    import nbformat
    import papermill

    from tutorkit.html import write_html

    run_dir.mkdir(parents=True, exist_ok=True)
    executed = run_dir / "report.ipynb"
    progress = Progress(nbformat.read(notebook, as_version=4))
    logging.getLogger("papermill").setLevel(logging.ERROR)
    # The kernel works where this command was called, so paths mean the same in both.
    papermill.execute_notebook(
        relative(notebook),
        relative(executed),
        parameters={**parameters, "run_dir": relative(run_dir)},
        progress_bar=False,
        start_timeout=180,
        stdout_file=progress,
        on_cell_start=progress.cell_starts,
        kernel_manager_class=kernel_of_this_interpreter(),
    )
    write_html(executed, run_dir / "report.html")
    return json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))


def choose_run_dir(wanted: Path | None, parameters: dict[str, Any]) -> Path:
    """The folder of a run: the wanted one, or a new one named after dataset, model and time.

    Args:
        wanted: the folder given by `-o`.
        parameters: every parameter of the run; may name the folder itself as `run_dir`.

    Raises:
        FileExistsError: if it holds a finished run, or other things than a run, and `overwrite` is
            not set.
    """
    from tutorkit.runs import new_run_dir, open_run_dir

    if wanted is None:
        root = os.environ.get("TUTORKIT_RUNS") or ROOT / "runs"
        return new_run_dir(parameters["dataset"], parameters["model"], root=root)
    # With `overwrite` the notebook empties the folder, after it has checked every value.
    return wanted if parameters.get("overwrite") else open_run_dir(wanted)


def main(arguments: list[str] | None = None, notebook: Path = REPORT) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tutorkit.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="pairs"
    )
    parser.add_argument("-o", dest="run_dir", help="default: a new folder in runs/")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished run in -o")
    chosen = parser.parse_args(arguments)
    parameters = {name: parse_value(text) for name, text in chosen.pairs}
    if chosen.overwrite:
        parameters["overwrite"] = True

    import papermill
    from nbclient.exceptions import DeadKernelError

    for name in OF_A_SESSION:
        os.environ.pop(name, None)
    try:
        defaults = parameter_defaults(notebook)
        check_names(list(parameters), list(defaults))
        if "show_texts" in defaults:
            # The report is the caller's own; one to publish is made with `-p show_texts False`.
            parameters.setdefault("show_texts", True)
        named = chosen.run_dir or parameters.get("run_dir")
        run_dir = choose_run_dir(Path(named) if named else None, defaults | parameters)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    partial = relative(run_dir / "report.ipynb")
    try:
        metrics = run(parameters, run_dir, notebook)
    except papermill.PapermillExecutionError as error:
        print(f"\n{error.ename}: {error.evalue}", file=sys.stderr)
        print(f"The notebook up to this error: {partial}", file=sys.stderr)
        return 1
    except DeadKernelError:
        print(
            "\nThe notebook's process died, most often for lack of memory: try a smaller "
            f"batch_size or max_length. The notebook up to there: {partial}",
            file=sys.stderr,
        )
        return 1
    print(result_line(metrics, run_dir / "report.html"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
