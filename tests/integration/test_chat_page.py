"""People in front of the page at `/`, in a real Chromium: what they see of real and of scripted models."""

import asyncio
import re
import threading

import pytest
from playwright.async_api import expect

from chat_pages import answer_of, ask, chat_page, set_to, until
from plinth_workloads.errors import UserError
from plinth_workloads.serving.api_keys import ApiKeys
from plinth_workloads.serving.engine import EngineOverloaded, GenerationFailed
from unit.plinth_workloads.serving.fake_engine import FakeEngine
from unit.plinth_workloads.serving.tiny_model import greedy_text, make_engine, make_model, make_tokenizer

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

HOSTILE = (
    '<img src=x onerror="window.harmed=1">',
    "<script>window.harmed=1</script>",
    "\n```html\n<b onclick='window.harmed=1'>bold</b>\n```\n",
    "[link](javascript:window.harmed=1) &lt;",
)


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


class FailingEngine(FakeEngine):
    """Raises `errors` one after the other before it answers."""

    def __init__(self, *errors):
        super().__init__(["fine"])
        self.errors = list(errors)

    async def generate(self, request):
        if self.errors:
            raise self.errors.pop(0)
        async for delta in super().generate(request):
            yield delta


async def test_a_real_model_answers_with_tokens_and_times(browser):
    model = make_model(end_ids=None)
    async with chat_page(browser, make_engine(model), name="tiny") as page:
        await expect(page).to_have_title("tiny")
        await expect(page.get_by_text("models:/m/1 · 128 tokens of context")).to_be_visible()
        await set_to(page, Temperature="0", Max_tokens="12")
        exchange = await ask(page, "hello")
        await expect(exchange.get_by_text("12 tokens · first after ")).to_be_visible()
        await expect(exchange.get_by_text("tokens/s · prompt of 22 tokens · cut off")).to_be_visible()
        figures = await exchange.locator("footer p").text_content()
        first, rate = map(float, re.search(r"first after ([\d.]+) s · ([\d.]+) tokens/s", figures).groups())
        assert rate * (first - 0.005) <= 12.5, "counted from the question: no burst makes it more"
        said = await answer_of(exchange).text_content()
        assert said == greedy_text(model, "user: hello\nassistant:", 12)


async def test_the_next_question_comes_with_what_was_said_and_set(browser):
    engine = FakeEngine(["Hel", "lo."])
    async with chat_page(browser, engine) as page:
        await set_to(page, System_prompt="Be kind.", Temperature="0.5", Top_p="0.9", Max_tokens="7")
        await expect(answer_of(await ask(page, "hi"))).to_have_text("Hello.")
        await expect(answer_of(await ask(page, "and?"))).to_have_text("Hello.")
        asked = [(message.role, message.content) for message in engine.messages]
        turns = [("user", "hi"), ("assistant", "Hello."), ("user", "and?")]
        assert asked == [("system", "Be kind."), *turns]
        sampling = engine.requests[-1].sampling
        assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.5, 0.9, 7)

        await page.get_by_role("button", name="New chat").click()
        await expect(page.get_by_role("article")).to_have_count(0)
        await expect(answer_of(await ask(page, "anew"))).to_have_text("Hello.")
        assert [message.content for message in engine.messages] == ["Be kind.", "anew"]


async def test_text_shows_while_it_is_made_and_stop_ends_it_on_the_server(browser):
    engine = FakeEngine(["first", "last"])
    engine.gate.clear()
    async with chat_page(browser, engine) as page:
        exchange = await ask(page, "hi")
        await expect(answer_of(exchange)).to_have_text("first")
        assert engine.num_running == 1
        await page.get_by_role("button", name="Stop").click()
        await until(lambda: engine.num_running == 0)
        await expect(exchange.get_by_text("stopped")).to_be_visible()
        engine.gate.set()
        await expect(answer_of(await ask(page, "go on"))).to_have_text("firstlast")
        assert [message.content for message in engine.messages] == ["hi", "first", "go on"]


async def test_whatever_a_model_says_stays_text(browser):
    async with chat_page(browser, FakeEngine(HOSTILE), name="<i>m</i>") as page:
        exchange = await ask(page, HOSTILE[0])
        answer = answer_of(exchange)
        await expect(answer.get_by_text("[link](javascript:window.harmed=1) &lt;")).to_be_visible()
        await expect(answer.locator("code")).to_have_text("<b onclick='window.harmed=1'>bold</b>")
        await expect(answer.locator("p").first).to_have_text(f"{HOSTILE[0]}{HOSTILE[1]}")
        await expect(exchange.locator(".question .text")).to_have_text(HOSTILE[0])
        await expect(page.get_by_role("heading", level=1)).to_have_text("<i>m</i>")
        assert await page.locator("article :is(img, script, b, a, i)").count() == 0
        assert await page.evaluate("window.harmed") is None


async def test_text_that_is_made_html_by_mistake_is_refused_by_the_browser(browser):
    async with chat_page(browser, FakeEngine(), violates="TrustedHTML") as page:
        mistake = "() => { try { document.body.innerHTML = '<b>'; return 'done' } catch (error) { return error.name } }"
        assert await page.evaluate(mistake) == "TypeError"


async def test_a_wrong_key_is_told_and_the_right_one_is_kept_nowhere(browser, tmp_path):
    (tmp_path / "alice").write_text("sk-alice")
    async with chat_page(browser, FakeEngine(["welcome"]), keys=ApiKeys(tmp_path)) as page:
        key = page.get_by_label("API key")
        await expect(key).to_be_focused()
        for wrong, says in (("sk-bob", "did not accept this key"), ("schlüssel", "of ASCII only")):
            await key.fill(wrong)
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("alert").get_by_text(says)).to_be_visible()
        await key.fill("sk-alice")
        await page.get_by_role("button", name="Use key").click()
        await expect(answer_of(await ask(page, "hi"))).to_have_text("welcome")
        await expect(key).to_be_hidden()
        kept = "[location.href, document.cookie, localStorage.length, sessionStorage.length, indexedDB.databases()]"
        assert await page.evaluate(f"Promise.all({kept})") == [page.url, "", 0, 0, []]
        assert "alice" not in page.url
        assert "sk-alice" not in await page.content()


async def test_a_key_that_is_withdrawn_is_asked_for_again(browser, tmp_path):
    (tmp_path / "alice").write_text("sk-alice")
    seconds = [0.0]
    async with chat_page(browser, FakeEngine(), keys=ApiKeys(tmp_path, clock=lambda: seconds[0])) as page:
        await page.get_by_label("API key").fill("sk-alice")
        await page.keyboard.press("Enter")
        await expect(answer_of(await ask(page, "hi"))).to_have_text("ab")
        (tmp_path / "alice").write_text("sk-other")
        seconds[0] += 60
        exchange = await ask(page, "again")
        await expect(exchange.get_by_role("alert")).to_have_text("This service needs a valid API key")
        await page.get_by_label("API key").fill("sk-other")
        await page.keyboard.press("Enter")
        await exchange.get_by_role("button", name="Try again").click()
        await expect(answer_of(page.get_by_role("article").last)).to_have_text("ab")


async def test_adapters_are_chosen_by_name(browser):
    engine = FakeEngine()
    # Each is offered once, whatever alias it follows.
    aliases = {"m": "champion", "docs": "champion"}
    async with chat_page(browser, engine, adapters={"docs": "models:/docs/3"}, aliases=aliases) as page:
        choice = page.get_by_label("Model")
        await expect(choice.locator("option")).to_have_text(["m", "docs (adapter)"])
        await choice.select_option("docs")
        await expect(page.get_by_text("models:/docs/3")).to_be_visible()
        exchange = await ask(page, "hi")
        await expect(answer_of(exchange)).to_have_text("ab")
        await expect(exchange.get_by_role("heading", name="docs")).to_be_visible()
        assert engine.requests[-1].adapter == "docs"


async def test_a_busy_service_is_asked_again_when_it_says(browser):
    engine = FailingEngine(EngineOverloaded("32 requests wait already"))
    async with chat_page(browser, engine) as page:
        await page.clock.install()
        exchange = await ask(page, "hi")
        said = "The service is busy: 32 requests wait already. Trying again in 1 s."
        await expect(exchange.get_by_text(said)).to_be_visible()
        await page.clock.fast_forward(1000)
        await expect(answer_of(exchange)).to_have_text("fine")
        await expect(exchange.get_by_text(said)).to_have_count(0)


async def test_waiting_for_a_busy_service_can_be_stopped(browser):
    async with chat_page(browser, FailingEngine(EngineOverloaded("busy"))) as page:
        await page.clock.install()
        exchange = await ask(page, "hi")
        await expect(exchange.get_by_text("Trying again in 1 s.")).to_be_visible()
        await page.get_by_role("button", name="Stop").click()
        await expect(exchange.get_by_text("stopped")).to_be_visible()
        await expect(answer_of(await ask(page, "again"))).to_have_text("fine")


async def test_an_answer_that_fails_says_why_and_can_be_asked_for_again(browser):
    engine = FakeEngine(["some", "more"], fails_after=1)
    async with chat_page(browser, engine) as page:
        exchange = await ask(page, "hi")
        await expect(exchange.get_by_role("alert")).to_have_text("The answer broke off: broken")
        await expect(answer_of(exchange)).to_have_text("some")
        engine.fails_after = None
        await exchange.get_by_role("button", name="Try again").click()
        await expect(answer_of(page.get_by_role("article"))).to_have_text("somemore")
        await expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize(
    ("error", "settings", "says"),
    [
        pytest.param(GenerationFailed("no step"), {}, "The service failed: no step (request ", id="at once"),
        pytest.param(None, {"Temperature": "5"}, "The request was refused: temperature: ", id="a setting"),
    ],
)
async def test_an_error_is_a_sentence_with_the_servers_reason(browser, error, settings, says):
    async with chat_page(browser, FailingEngine(*filter(None, [error]))) as page:
        await set_to(page, **settings)
        exchange = await ask(page, "hi")
        await expect(exchange.get_by_role("alert").get_by_text(says)).to_be_visible()


async def test_a_service_that_is_gone_is_told(browser):
    async with chat_page(browser, FakeEngine()) as page:
        await expect(page.get_by_label("Message", exact=True)).to_be_focused()
        await page.route("**/v1/chat/completions", lambda route: route.abort("internetdisconnected"))
        exchange = await ask(page, "hi")
        await expect(exchange.get_by_role("alert")).to_have_text("The service cannot be reached. Is it still running?")


async def test_a_model_that_is_being_loaded_is_waited_for(browser):
    may_load = threading.Event()

    def load(uri):
        assert may_load.wait(timeout=30)
        return FakeEngine()

    async with chat_page(browser, load) as page:
        await expect(page.get_by_role("status")).to_have_text("Not ready yet: models:/m/1 is being loaded")
        await expect(page.get_by_label("Message", exact=True)).to_be_hidden()
        may_load.set()
        await expect(page.get_by_label("Message", exact=True)).to_be_focused()
        await expect(page.get_by_role("status")).to_be_empty()


async def test_a_service_that_has_not_answered_yet_is_waited_for(browser):
    async with chat_page(browser, FakeEngine()) as page:
        may_answer = asyncio.Event()

        async def hold(route):
            await may_answer.wait()
            await route.continue_()

        await page.route("**/v1/models", hold)
        await page.reload()
        await expect(page.get_by_role("status")).to_have_text("Asking the service what it does.")
        may_answer.set()
        await expect(page.get_by_label("Message", exact=True)).to_be_focused()
        await expect(page.get_by_role("status")).to_be_empty()


async def test_a_model_that_cannot_be_loaded_is_told_with_the_reason(browser):
    def fail(uri):
        raise UserError("ModelNotFound", "there is no such model")

    async with chat_page(browser, fail) as page:
        await expect(page.get_by_role("status")).to_contain_text("could not be loaded: there is no such model")


async def test_a_model_without_a_chat_template_goes_on_with_a_text(browser):
    model = make_model(end_ids=None)
    tokenizer = make_tokenizer(chat_template=None, ends=False)
    async with chat_page(browser, make_engine(model, tokenizer)) as page:
        await set_to(page, Temperature="0", Max_tokens="8")
        exchange = await ask(page, "abc")
        await expect(exchange.get_by_text("8 tokens")).to_be_visible()
        await expect(page.get_by_role("status")).to_contain_text("has no chat template")
        await expect(page.get_by_role("article")).to_have_count(1)
        await expect(page.get_by_label("a text to go on with")).to_be_checked()
        await expect(page.get_by_label("System prompt")).to_be_hidden()
        assert await answer_of(exchange).text_content() == greedy_text(model, "abc", 8)


async def test_enter_sends_and_shift_enter_begins_a_line(browser):
    engine = FakeEngine()
    async with chat_page(browser, engine) as page:
        box = page.get_by_label("Message", exact=True)
        await box.press_sequentially("one")
        await box.press("Shift+Enter")
        await box.press_sequentially("two")
        assert engine.requests == []
        await box.press("Enter")
        await expect(answer_of(page.get_by_role("article"))).to_have_text("ab")
        await expect(box).to_have_value("")
        await box.press("Enter")
        assert [message.content for message in engine.messages] == ["one\ntwo"]
        assert len(engine.requests) == 1


@pytest.mark.parametrize("secure", [True, False])
async def test_code_is_set_apart_and_copied_with_and_without_a_clipboard(browser, secure):
    engine = FakeEngine(["Try:\n``", "`python\nx = 1\n\ny = 2\n```\nDone."])
    allowed = ["clipboard-read", "clipboard-write"] if secure else []
    async with chat_page(browser, engine, permissions=allowed) as page:
        if not secure:
            # As on an address that is neither https nor this machine.
            await page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        exchange = await ask(page, "hi")
        await expect(exchange.locator("pre code")).to_have_text("x = 1\n\ny = 2")
        await exchange.locator(".code").get_by_role("button", name="Copy").click()
        await expect(exchange.get_by_role("button", name="Copied")).to_be_visible()
        box = page.get_by_label("Message", exact=True)
        await box.focus()
        await page.keyboard.press("Control+V")
        await expect(box).to_have_value("x = 1\n\ny = 2")


async def test_behind_a_prefix_everything_is_found(browser):
    async with chat_page(browser, FakeEngine(), prefix="/team-a/pycode") as page:
        await expect(answer_of(await ask(page, "hi"))).to_have_text("ab")


BELOW = "log => log.scrollHeight - log.scrollTop - log.clientHeight"


async def test_a_long_answer_is_followed_until_somebody_scrolls_up(browser):
    engine = FakeEngine([f"line {number}\n" for number in range(200)])
    engine.gate.clear()
    async with chat_page(browser, engine) as page:
        log = page.get_by_role("log")
        answer = answer_of(await ask(page, "hi"))
        await expect(answer).to_contain_text("line 198")
        async with asyncio.timeout(10):
            while await log.evaluate(BELOW) > 1:
                await asyncio.sleep(0.01)
        await page.mouse.move(*await middle_of(log))
        await page.mouse.wheel(0, -1000)
        async with asyncio.timeout(10):
            while await log.evaluate(BELOW) < 900:
                await asyncio.sleep(0.01)
        engine.gate.set()
        await expect(page.get_by_text("200 tokens")).to_be_attached()
        await expect(answer).to_contain_text("line 199")
        assert await log.evaluate(BELOW) > 900


async def middle_of(locator):
    box = await locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
