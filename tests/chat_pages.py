"""The chat page of services in a real browser: an engine enters, an open page leaves that is watched."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, ConsoleMessage, Locator, Page, Request, ViewportSize
from starlette.types import ASGIApp, Receive, Scope, Send

from listening import listening
from plinth_workloads.serving.api_keys import ApiKeys
from plinth_workloads.serving.asgi import build_asgi
from plinth_workloads.serving.served_model import ServedModel
from plinth_workloads.serving.served_names import ServedNames

NARROW = ViewportSize(width=320, height=600)

_NO_ANSWER = "Failed to load resource: "
"""What Chromium itself says of an answer that is an error or missing, which the page tells the user."""


class Watched:
    """What a page did that none may do.

    Attributes:
        problems: Errors and warnings of the console, violations of the policy among them, and exceptions.
        strangers: Addresses elsewhere than at the service.
    """

    def __init__(self, page: Page, origin: str) -> None:
        self.problems: list[str] = []
        self.strangers: list[str] = []
        self._origin = origin
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._see)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(_NO_ANSWER):
            self.problems.append(message.text)

    def _see(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if f"{parts.scheme}://{parts.netloc}" != self._origin:
            self.strangers.append(request.url)


@asynccontextmanager
async def chat_page(
    browser: Browser,
    engine: Any,
    *,
    name: str = "m",
    keys: ApiKeys | None = None,
    adapters: Mapping[str, str] | None = None,
    aliases: Mapping[str, str] | None = None,
    prefix: str = "",
    violates: str = "",
    **context: Any,
) -> AsyncIterator[Page]:
    """The page of a service that serves `engine`.

    Args:
        browser: That opens it.
        engine: A ModelEngine, or what makes one of a URI.
        name: Of the service.
        keys: That open the API.
        adapters: URIs by name.
        aliases: That are followed, by name.
        prefix: Under which an Ingress shows the service, which sees paths without it.
        violates: What the browser says once of what a test makes the page do wrong.
        context: Of Playwright's new_context.
    """
    make_engine: Callable[[str], Any] = engine if callable(engine) else lambda uri: engine
    served = ServedModel(make_engine, fetch_adapter=lambda uri, model_uri: Path(uri))
    served.set_adapters(adapters or {})
    served.set_target("models:/m/1")
    async with AsyncExitStack() as opened:
        opened.push_async_callback(served.close)
        app = build_asgi(served, ServedNames(name, aliases), keys=keys)
        origin = f"http://127.0.0.1:{await opened.enter_async_context(listening(behind(prefix, app)))}"
        tab = await browser.new_context(**context)
        opened.push_async_callback(tab.close)
        tab.set_default_timeout(20_000)
        page = await tab.new_page()
        watched = Watched(page, origin)
        await page.goto(f"{origin}{prefix}/")
        yield page
    assert watched.strangers == []
    assert [problem for problem in watched.problems if not violates or violates not in problem] == []
    assert bool(watched.problems) == bool(violates)


def behind(prefix: str, app: ASGIApp) -> ASGIApp:
    """What takes a prefix off a path, as an Ingress that rewrites does, and knows no other path."""

    async def rewriting(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["path"].startswith(f"{prefix}/"), scope["path"]
        await app({**scope, "path": scope["path"].removeprefix(prefix)}, receive, send)

    return rewriting


async def ask(page: Page, question: str) -> Locator:
    """Say something; the exchange that it begins."""
    await page.get_by_label("Message", exact=True).fill(question)
    await page.keyboard.press("Enter")
    return page.get_by_role("article").last


def answer_of(exchange: Locator) -> Locator:
    """The text of an answer."""
    return exchange.locator(".answer .text")


async def set_to(page: Page, **settings: str) -> None:
    """Fill in settings by their labels' first words."""
    if not await page.get_by_label("Temperature").is_visible():
        await page.get_by_text("Settings").click()
    for label, value in settings.items():
        await page.get_by_label(label.replace("_", " ")).fill(value)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Return once it holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
