"""A real browser for tests of pages: the machine's Chromium or Chrome, or else Debian's, which is installed.

Enters: what a machine has. Leaves: the path of a browser, and one that is driven and reaches this machine only.
Playwright's own browsers are downloads from elsewhere; it drives any Chromium that is up to date, as Debian and Google
keep theirs. `PYTHONPATH=tests python -m browser` installs it.
"""

import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, async_playwright

from cluster.packages import BROWSER, PackagesMissing, ensure_packages

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

_FLAGS = (
    # No test asks anybody else, nor does the browser by itself.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    # The same text on every machine, whatever its screen.
    "--font-render-hinting=none",
)


def find_browser() -> str | None:
    """The path of a browser of this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def ensure_browser() -> str:
    """The path of a browser, installed where there is none.

    Raises:
        PackagesMissing: There is none, and it cannot be installed from here.
    """
    if found := find_browser():
        return found
    try:
        ensure_packages(BROWSER)
    except PackagesMissing as error:
        raise PackagesMissing(f"tests of pages need Chromium or Chrome on the PATH. {error}") from error
    return BROWSER["chromium"]


@asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    """A browser without a screen, for the event loop that asks."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=ensure_browser(), args=_FLAGS)
        yield browser
        await browser.close()


if __name__ == "__main__":
    try:
        ensure_browser()
    except PackagesMissing as error:
        sys.exit(f"browser: {error}")
