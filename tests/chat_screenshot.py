"""`python -m chat_screenshot [URL]`: docs/images/chat.png, of a service that is up.

Enters: the address of the demo's service, as `make demo KEEP=1` leaves it up. Leaves: a picture of its chat page, in
which every word and figure is the model's own.
"""

import asyncio
import sys
from pathlib import Path

from playwright.async_api import ViewportSize, expect

from browser import running_browser
from chat_pages import ask, set_to

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "chat.png"
SIZE = ViewportSize(width=820, height=660)
PIXELS_PER_POINT = 1.5
QUESTIONS = (
    "Write a docstring for this Python code.\n\ndef is_valid(self, name):",
    "Write a docstring for this Python code.\n\ndef get_value(self, key, default=None):",
)


async def main(url: str) -> None:
    """Ask the questions and write the picture."""
    async with running_browser() as browser:
        page = await browser.new_page(viewport=SIZE, device_scale_factor=PIXELS_PER_POINT)
        await page.goto(url)
        await expect(page.get_by_label("Message", exact=True)).to_be_focused(timeout=60_000)
        await set_to(page, Temperature="0.2", Max_tokens="64")
        await page.get_by_text("Settings").click()
        for question in QUESTIONS:
            exchange = await ask(page, question)
            await expect(exchange.get_by_text("tokens/s")).to_be_visible(timeout=60_000)
        await page.screenshot(path=IMAGE)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/"))
