"""What a person does with a lesson in JupyterLab: open, run, type, move a slider, look.

A cell is named by a piece of its source that no other cell has, or by its number from 0.
"""

from __future__ import annotations

import hashlib
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from chromium import NO_PLAYWRIGHT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

# Without it the test files, which import this one, are skipped.
expect = pytest.importorskip("playwright.sync_api", reason=NO_PLAYWRIGHT).expect

RUN_LIMIT = 180  # seconds for all cells of a lesson, on a busy machine

# Waiting for the toolbar's idle indicator loses half of the runs: it says idle before the kernel
# has answered. So the page's own objects are asked. `limited` is there because a promise that
# nothing keeps would hold the test for ever.
SCRIPT = """
window.lesson = {
  limited: (promise, seconds, what) => Promise.race([
    promise,
    new Promise((_, fail) => setTimeout(
      () => fail(new Error(`${what}: no end in ${seconds} s`)), 1000 * seconds)),
  ]),
  pause: milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds)),

  open: async (path, kernel) => {
    const app = window.jupyterapp;
    const preference = kernel ? {} : {shouldStart: false, canStart: false};
    const panel = await app.commands.execute(
      'docmanager:open', {path, factory: 'Notebook', kernelPreference: preference});
    await panel.context.ready;
    await panel.revealed;
    await panel.sessionContext.ready;
    window.lesson.panel = panel;
    if (kernel) {
      await panel.sessionContext.session.kernel.info;
      await window.lesson.idle();
    }
  },
  idle: async () => {
    while (window.lesson.panel.sessionContext.session.kernel.status !== 'idle') {
      await window.lesson.pause(50);
    }
  },
  cells: () => window.lesson.panel.content.widgets.map(cell => ({
    type: cell.model.type,
    source: cell.model.sharedModel.getSource(),
    tags: cell.model.getMetadata('tags') || [],
    folded: cell.inputHidden === true,
    count: cell.model.executionCount ?? null,
    outputs: (cell.model.outputs?.toJSON() ?? []).map(output => output.output_type),
  })),
  errors: () => window.lesson.panel.content.widgets.flatMap((cell, i) =>
    (cell.model.outputs?.toJSON() ?? []).filter(output => output.output_type === 'error')
      .map(output => `cell ${i}: ${output.ename}: ${output.evalue}`)),
  // Cells out of sight have guessed heights, so what is scrolled to moves until they are drawn.
  show: async index => {
    const node = window.lesson.panel.content.widgets[index].node;
    node.dataset.lessonCell = index;
    for (let still = 0, top = NaN; still < 3;) {
      node.scrollIntoView({block: 'center'});
      await window.lesson.pause(60);
      const now = node.getBoundingClientRect().top;
      still = now === top ? still + 1 : 0;
      top = now;
    }
  },
  run: async index => {
    const notebook = window.lesson.panel.content;
    notebook.deselectAll();
    notebook.activeCellIndex = index;
    return await window.jupyterapp.commands.execute('notebook:run-cell');
  },
};
"""


class Lesson:
    """A notebook opened in a browser page of its own, with a kernel that has started.

    Attributes:
        page: Playwright's page, for what the methods here don't do.
        path: the notebook, from the folder that the server serves.
        kernel: whether one was asked for.
        messages: the errors that the page wrote to its console.
        outside: the addresses of other hosts that it asked for; each was refused.
    """

    def __init__(self, browser: Browser, address: str, path: str, kernel: bool = True) -> None:
        """Open a notebook.

        Args:
            browser: a started browser.
            address: of the server.
            path: the notebook, from the folder that the server serves.
            kernel: False to only look at what is stored. Where another page has a kernel on this
                notebook, JupyterLab connects this one to it all the same.
        """
        self.path, self.kernel = path, kernel
        self.messages: list[str] = []
        self.outside: list[str] = []
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.route(lambda url: not url.startswith(address), self._refuse)
        self.page = context.new_page()
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on(
            "console",
            lambda message: message.type == "error" and self.messages.append(message.text),
        )
        # A workspace of its own: a shared one would open the notebooks of the test before.
        workspace = f"{address}/lab/workspaces/test-{time.monotonic_ns()}?reset"
        self.page.goto(workspace, timeout=90_000)
        self.page.wait_for_function("() => window.jupyterapp?.restored", timeout=60_000)
        self.page.evaluate("() => window.jupyterapp.restored.then(() => {})")
        self.page.evaluate(SCRIPT)
        self._ask("open", path, kernel, limit=90)

    def _refuse(self, route: Any) -> None:
        self.outside.append(route.request.url)
        route.abort()

    def _ask(self, what: str, *arguments: Any, limit: float = 30) -> Any:
        """The answer of one of the functions of SCRIPT."""
        return self.page.evaluate(
            "([what, list, limit]) =>"
            " lesson.limited(Promise.resolve(lesson[what](...list)), limit, what)",
            [what, list(arguments), limit],
        )

    def close(self) -> None:
        """End the kernel, if it was asked for, and close the page; nothing is saved."""
        if self.kernel:
            self.page.evaluate("() => lesson.panel.sessionContext.shutdown()")
        self.page.context.close()

    def cells(self) -> list[dict[str, Any]]:
        """Every cell's `type`, `source`, `tags`, whether it is `folded`, its execution `count`
        (None before it has run) and the types of its `outputs`."""
        return self._ask("cells")

    def find(self, cell: int | str) -> int:
        """The number of a cell."""
        if isinstance(cell, int):
            return cell
        found = [i for i, each in enumerate(self.cells()) if cell in each["source"]]
        assert len(found) == 1, f"{cell!r} is in the source of cells {found}; expected one"
        return found[0]

    def tagged(self, tag: str) -> list[int]:
        """The numbers of the cells with a tag."""
        return [i for i, each in enumerate(self.cells()) if tag in each["tags"]]

    def errors(self) -> list[str]:
        """The error of every cell that has one, with its number."""
        return self._ask("errors")

    def clear(self) -> None:
        """Take the outputs of every cell away."""
        self.page.evaluate(
            "() => window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')"
        )

    def run_all(self, limit: float = RUN_LIMIT) -> None:
        """Run every cell and wait for the end; a cell that fails ends it too, see `errors`."""
        self.page.evaluate(
            "limit => lesson.limited("
            "window.jupyterapp.commands.execute('notebook:run-all-cells'), limit, 'run all')",
            limit,
        )
        self.wait_idle()

    def start(self, cell: int | str) -> None:
        """Run one cell without waiting, to do something while it runs; then `wait_end`."""
        self.show(cell)
        self.page.evaluate("index => { lesson.run(index); }", self.find(cell))

    def run(self, cell: int | str, limit: float = 60) -> None:
        """Run one cell and wait for its end."""
        self.show(cell)
        self._ask("run", self.find(cell), limit=limit)
        self.wait_idle()

    def wait_idle(self, limit: float = 60) -> None:
        """Wait until the kernel has nothing to do."""
        self._ask("idle", limit=limit)

    def prompt(self, cell: int | str) -> Locator:
        """What stands beside a cell: `[*]:` while it runs or waits, then the number of its run."""
        return self.show(cell).locator(".jp-InputPrompt")

    def wait_end(self, cell: int | str, limit: float = 60) -> None:
        """Wait until a cell that was started is over.

        The kernel's status does not tell: it is idle as soon as a widget has been answered, in a
        thread of its own, while the cell still runs.
        """
        expect(self.prompt(cell)).to_have_text(re.compile(r"\[\d+\]:"), timeout=1000 * limit)

    def save(self) -> None:
        """Save the notebook, as a person does by its command."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")

    def show(self, cell: int | str) -> Locator:
        """Scroll to a cell; returns its element."""
        index = self.find(cell)
        self._ask("show", index)
        return self.page.locator(f"[data-lesson-cell='{index}']")

    def output(self, cell: int | str) -> Locator:
        """Scroll to a cell; returns the element of all its outputs."""
        return self.show(cell).locator(".jp-Cell-outputArea")

    def write(self, cell: int | str, source: str) -> None:
        """Put the cursor into a cell and write another source into it."""
        index = self.find(cell)
        self.show(index).locator(".cm-content").click()
        self.page.keyboard.press("ControlOrMeta+A")
        self.page.keyboard.insert_text(source)
        self.page.wait_for_function(
            "([index, source]) => lesson.cells()[index].source === source", arg=[index, source]
        )

    def slider(self, cell: int | str, label: str) -> Locator:
        """The handle of the slider with a label, among a cell's outputs."""
        slider = self.output(cell).locator(".widget-slider").filter(has_text=label)
        return slider.get_by_role("slider")

    def button(self, cell: int | str, label: str) -> Locator:
        """A widget's button, among a cell's outputs."""
        return self.output(cell).get_by_role("button", name=label)

    def picture(self, cell: int | str) -> str:
        """The SHA-256 of the picture among a cell's outputs, once the browser has drawn it."""
        image = self.output(cell).locator("img")
        expect(image).to_be_visible()
        return hashlib.sha256(bytes(image.evaluate(PICTURE_BYTES))).hexdigest()

    def press(self, handle: Locator, key: str, cell: int | str, limit: float = 10) -> float:
        """Press a key on a slider's handle and wait for another picture.

        Args:
            handle: from `slider`.
            key: such as `ArrowRight`.
            cell: whose output the picture is.
            limit: seconds to wait.

        Returns:
            Seconds from the key to the new picture, as the page measures them.
        """
        image = self.output(cell).locator("img")
        image.evaluate(WATCH_PICTURE)
        handle.focus()
        handle.press(key)
        return image.evaluate(
            "(image, limit) => lesson.limited(image.changed, limit, 'a new picture')", limit
        )


PICTURE_BYTES = """async image => {
  await image.decode();
  const answer = await fetch(image.src);
  return Array.from(new Uint8Array(await answer.arrayBuffer()));
}"""
# The clock starts at the key, and stops when the browser has decoded the new picture.
WATCH_PICTURE = """image => {
  let pressed = performance.now();
  document.addEventListener('keydown', () => { pressed = performance.now(); },
    {capture: true, once: true});
  image.changed = new Promise(resolve => image.addEventListener('load', async () => {
    await image.decode();
    resolve((performance.now() - pressed) / 1000);
  }, {once: true}));
}"""
