"""A browser and a JupyterLab for the tests of this folder, which only its own stage collects:

    python -m pytest tests/e2e

Needs Chromium, see chromium.py; without it every test is skipped and says what to install.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from chromium import FLAGS, NoChromium, find

if TYPE_CHECKING:
    from lab import Server
    from pages import Lesson
    from playwright.sync_api import Browser

BROWSER = pytest.StashKey["Browser"]()
SCREENS = pytest.StashKey[Path]()
LOG = pytest.StashKey[Path]()


@pytest.fixture(scope="session")
def browser(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    """Chromium without a window."""
    try:
        program = find()
    except NoChromium as reason:
        pytest.skip(str(reason))
    from playwright.sync_api import sync_playwright

    stash = request.config.stash
    stash[SCREENS] = tmp_path_factory.mktemp("screens")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=FLAGS)
        stash[BROWSER] = started
        yield started
        del stash[BROWSER]
        started.close()


@pytest.fixture(scope="session")
def server(
    browser: Browser, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """JupyterLab over a copy of the lessons."""
    from lab import Server

    started = Server(tmp_path_factory.mktemp("lab"))
    request.config.stash[LOG] = started.log
    started.start()
    yield started
    started.stop()


@pytest.fixture
def open_lesson(browser: Browser, server: Server) -> Iterator[Callable[..., Lesson]]:
    """A function that opens a notebook; what it opened is closed after the test."""
    from pages import Lesson

    opened = []

    def open_one(path: str, **options: Any) -> Lesson:
        opened.append(Lesson(browser, server.address, path, **options))
        return opened[-1]

    yield open_one
    for lesson in opened:
        lesson.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Keep a picture of every open page; a failed test names them."""
    report = yield
    stash = item.config.stash
    if call.when == "call" or report.failed:
        screens = []
        pages = [p for c in stash[BROWSER].contexts for p in c.pages] if BROWSER in stash else []
        name = re.sub(r"\W+", "_", f"{item.name} {call.when}")
        for i, page in enumerate(pages, start=1):
            screens.append(stash[SCREENS] / f"{name}_{i}.png")
            try:
                page.screenshot(path=screens[-1], timeout=10_000)
            except Exception as error:  # a page that hangs: the test's own error says more
                screens[-1] = f"page {i}: no screenshot ({error})"
        if report.failed:
            report.sections.append(("Screenshots", "\n".join(map(str, screens))))
            if LOG in stash:
                tail = stash[LOG].read_text(encoding="utf-8")[-3000:]
                report.sections.append((f"End of {stash[LOG]}", tail))
    return report
