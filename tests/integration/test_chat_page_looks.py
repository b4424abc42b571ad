"""How the chat page looks and reads, in a real Chromium: schemes, screens, motion, names, and the forms of encoders."""

import numpy as np
import pytest
from playwright.async_api import expect

from chat_pages import NARROW, answer_of, ask, chat_page, set_to
from plinth_workloads.serving.api_keys import ApiKeys
from plinth_workloads.serving.encoder import Labels
from plinth_workloads.serving.engine import EngineOverloaded
from unit.plinth_workloads.serving import tiny_encoder
from unit.plinth_workloads.serving.fake_encoder import FakeEncoder
from unit.plinth_workloads.serving.fake_engine import FakeEngine
from unit.plinth_workloads.serving.tiny_model import make_tokenizer

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

ENOUGH_CONTRAST = 4.5
"""For text of any size: WCAG 2.2, success criterion 1.4.3, level AA."""

FAINT_TEXTS = """
(enough) => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => {
    const [red, green, blue] = channels(colour).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const groundOf = (node) => {
    const colour = getComputedStyle(node).backgroundColor;
    return channels(colour)[3] === 0 ? groundOf(node.parentElement) : colour;
  };
  const contrast = (one, other) => {
    const [dark, light] = [luminance(one), luminance(other)].toSorted((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
  const found = [];
  for (const node of document.body.querySelectorAll("*")) {
    const hasText = [...node.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.data.trim());
    if (!node.checkVisibility() || !(hasText || node.placeholder)) continue;
    const { color } = getComputedStyle(node, node.placeholder ? "::placeholder" : null);
    const measured = contrast(color, groundOf(node));
    if (measured < enough) found.push(`${node.tagName} ${node.className} ${node.textContent} ${measured}`);
  }
  return found;
}
"""

UNNAMED_CONTROLS = """
() => [...document.querySelectorAll("button, input, select, textarea, [role]")]
  .filter((node) => node.checkVisibility() && !["alert", "status"].includes(node.role))
  .filter((node) => !(node.labels?.length || node.ariaLabel || (node.tagName === "BUTTON" && node.textContent.trim())))
  .map((node) => node.outerHTML)
"""


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


async def no_text_is_faint(page):
    return await page.evaluate(FAINT_TEXTS, ENOUGH_CONTRAST) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_can_be_read_in_both_schemes(browser, tmp_path, scheme):
    (tmp_path / "alice").write_text("sk-alice")
    engine = FakeEngine(["Try:\n```\nx = 1\n```\n", "more"], fails_after=1)
    async with chat_page(browser, engine, keys=ApiKeys(tmp_path), color_scheme=scheme) as page:
        await page.get_by_label("API key").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("did not accept")
        assert await no_text_is_faint(page)
        await page.get_by_label("API key").fill("sk-alice")
        await page.keyboard.press("Enter")
        await set_to(page, Temperature="1")
        exchange = await ask(page, "hi")
        await expect(exchange.get_by_role("alert")).to_be_visible()
        await expect(exchange.locator("code")).to_be_visible()
        assert await no_text_is_faint(page)
        ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(21, 24, 26)") == (scheme == "dark")


async def test_a_screen_reader_finds_a_name_for_everything_and_hears_whole_answers(browser):
    engine = FakeEngine(["```\nx = 1\n```\n", "end"])
    engine.gate.clear()
    async with chat_page(browser, engine, adapters={"docs": "models:/docs/3"}) as page:
        await set_to(page, Temperature="1")
        exchange = await ask(page, "hi")
        answer = exchange.locator("[aria-busy]")
        await expect(answer).to_have_attribute("aria-busy", "true")
        engine.gate.set()
        await expect(answer).to_have_attribute("aria-busy", "false")
        assert await page.evaluate(UNNAMED_CONTROLS) == []
        await expect(page.get_by_role("log", name="Conversation")).to_contain_text("end")


async def test_every_control_is_reached_by_the_keyboard_and_shows_that_it_is(browser):
    async with chat_page(browser, FakeEngine(), adapters={"docs": "models:/docs/3"}) as page:
        await expect(answer_of(await ask(page, "hi"))).to_have_text("ab")
        await page.get_by_label("Model").focus()
        reached = set()
        for _ in range(7):
            name = "document.activeElement.id || document.activeElement.textContent"
            reached.add(await page.evaluate(name))
            assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            await page.keyboard.press("Tab")
        assert reached == {"model", "new-chat", "conversation", "Copy", "Settings", "message", "send"}


async def test_on_a_narrow_screen_nothing_is_cut_off(browser):
    words = ["a" * 200, "\n```\n", "b" * 200, "\n```\n"]
    async with chat_page(browser, FakeEngine(words), viewport=NARROW, adapters={"docs": "models:/docs/3"}) as page:
        await set_to(page, Temperature="1")
        await expect(answer_of(await ask(page, "c" * 200))).to_contain_text("b" * 200)
        assert await page.evaluate("document.scrollingElement.scrollWidth") <= NARROW["width"]
        for name in ("Send", "New chat"):
            await page.get_by_role("button", name=name).scroll_into_view_if_needed()
            await expect(page.get_by_role("button", name=name)).to_be_in_viewport(ratio=0.95)


@pytest.mark.parametrize(("motion", "animation"), [("no-preference", "blink"), ("reduce", "none")])
async def test_nothing_blinks_for_whoever_wants_less_motion(browser, motion, animation):
    engine = FakeEngine()
    engine.gate.clear()
    async with chat_page(browser, engine, reduced_motion=motion) as page:
        answer = answer_of(await ask(page, "hi"))
        await expect(answer).to_have_text("a")
        assert await answer.evaluate("node => getComputedStyle(node, '::after').animationName") == animation
        engine.gate.set()
        await expect(answer).to_have_text("ab")


def text_box(page):
    return page.get_by_role("textbox", name="Text", exact=True)


async def bars_of(page, name):
    """The bars of a form: text, drawn share and number, in their order."""
    rows = page.get_by_role("region", name=name).get_by_role("listitem")
    await expect(rows.first).to_be_attached()
    share = "row => Number(row.querySelector('.bar').style.getPropertyValue('--share'))"
    return [
        ((await row.locator("span").first.text_content()), await row.evaluate(share), await number_of(row))
        for row in await rows.all()
    ]


async def number_of(row):
    return await row.locator(".number").text_content()


async def test_a_classifier_shows_its_labels_with_bars(browser):
    encoder = FakeEncoder((0.25, 0.7, 0.05), Labels(("question", "<b>order</b>", "thanks"), "one"))
    async with chat_page(browser, encoder, viewport=NARROW) as page:
        await expect(text_box(page)).to_be_focused()
        await text_box(page).fill("give me two")
        await page.get_by_role("button", name="Classify").click()
        assert await bars_of(page, "Labels") == [
            ("<b>order</b>", pytest.approx(0.7), "70.0 %"),
            ("question", 0.25, "25.0 %"),
            ("thanks", pytest.approx(0.05), "5.0 %"),
        ]
        await expect(page.locator(".chosen")).to_have_text("<b>order</b>70.0 %")
        assert await page.evaluate(UNNAMED_CONTROLS) == []
        assert await page.evaluate("document.scrollingElement.scrollWidth") <= NARROW["width"]


async def test_several_labels_may_be_chosen_and_a_value_is_told_as_one(browser):
    async with chat_page(browser, FakeEncoder((0.75, 0.25, 0.875), Labels(("a", "b", "c"), "several"))) as page:
        await text_box(page).fill("text")
        await page.get_by_role("button", name="Classify").click()
        await expect(page.locator(".chosen")).to_have_text(["c87.5 %", "a75.0 %"])
    async with chat_page(browser, FakeEncoder((-3.5,), Labels(("LABEL_0",), "value"))) as page:
        await text_box(page).fill("text")
        await page.get_by_role("button", name="Classify").click()
        await expect(page.get_by_text("Value: -3.500")).to_be_visible()


async def test_texts_are_compared_by_the_cosines_of_a_real_model(browser):
    texts = ["close the archive", "shut the file", "median of data"]
    vectors = [tiny_encoder.by_hand(make_tokenizer().encode(text)) for text in texts]
    cosines = {text: float(np.dot(vectors[0], vector)) for text, vector in zip(texts[1:], vectors[1:], strict=True)}
    async with chat_page(browser, tiny_encoder.make_engine(), viewport=NARROW) as page:
        await text_box(page).fill(texts[0])
        await page.get_by_label("Compare with").fill("\n\n".join(texts[1:]))
        await page.get_by_role("button", name="Compare").click()
        shown = await bars_of(page, "Similarity")
        assert [(text, number) for text, _, number in shown] == [
            (text, f"{cosine:.3f}") for text, cosine in sorted(cosines.items(), key=lambda item: -item[1])
        ]
        await page.get_by_label("Compare with").fill("")
        await page.get_by_role("button", name="Compare").click()
        await expect(page.get_by_text("at least one to compare it with")).to_be_visible()


class BusyEncoder(FakeEncoder):
    """Has no room for the first request."""

    async def compute(self, rows, client=""):
        if not self.rows:
            self.rows += rows
            raise EngineOverloaded("1,048,576 tokens wait already")
        return await super().compute(rows, client)


async def test_a_busy_encoder_is_asked_again_and_a_refusal_is_a_sentence(browser):
    async with chat_page(browser, BusyEncoder(labels=Labels(("a", "b"), "one"))) as page:
        await page.clock.install()
        await text_box(page).fill("text")
        await page.get_by_role("button", name="Classify").click()
        await expect(page.get_by_text("The service is busy: 1,048,576 tokens wait already")).to_be_visible()
        await page.clock.fast_forward(1000)
        await expect(page.locator(".chosen")).to_have_text("b80.0 %")
        await page.route("**/v1/classify", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
        await page.get_by_role("button", name="Classify").click()
        await expect(page.get_by_text("The service answered 502")).to_be_visible()
