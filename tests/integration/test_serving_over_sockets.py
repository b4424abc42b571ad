"""Clients that behave badly, over real connections: each is refused or left waiting, and the others are answered."""

import asyncio
import json
import resource
import socket
from contextlib import asynccontextmanager, suppress

import httpx
import pytest

from listening import listening
from plinth_api.run import ServeLimits
from plinth_workloads.serving.asgi import build_asgi
from plinth_workloads.serving.engine import TokenDelta
from plinth_workloads.serving.served_model import ServedModel
from plinth_workloads.serving.served_names import ServedNames
from unit.plinth_workloads.serving.asgi_service import CHAT
from unit.plinth_workloads.serving.fake_engine import FakeEngine
from unit.plinth_workloads.serving.tiny_model import make_engine, make_tokenizer

pytestmark = pytest.mark.anyio

MEGABYTE = 2**20
NUM_IDLE = 1000


@pytest.fixture
def anyio_backend():
    return "asyncio"


@asynccontextmanager
async def service(engine):
    """A service named m: what it serves, its port and a well-behaved client."""
    served = ServedModel(lambda uri: engine)
    served.set_target("models:/m/1")
    await served.wait_loaded()
    async with (
        listening(build_asgi(served, ServedNames("m"))) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as http,
    ):
        yield served, port, http


def head(*headers, path="/v1/completions"):
    lines = [f"POST {path} HTTP/1.1", "Host: m", "Content-Type: application/json", *headers]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def asking(**body):
    content = json.dumps({"model": "m", "prompt": "p", **body}).encode()
    return head(f"Content-Length: {len(content)}") + content


async def status_of(reader):
    line = await asyncio.wait_for(reader.readline(), timeout=10)
    return int(line.split()[1])


async def is_answered(http):
    response = await http.post("/v1/completions", json={"model": "m", "prompt": "p", "max_tokens": 2})
    return response.status_code == 200


async def until_no_row_is_left(engine):
    async with asyncio.timeout(10):
        while engine.num_running:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("chunked", [False, True])
async def test_fifty_megabytes_are_refused_while_others_are_answered(chunked):
    async with service(FakeEngine()) as (_, port, http):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head("Transfer-Encoding: chunked" if chunked else f"Content-Length: {50 * MEGABYTE}"))
        piece = b"[" * MEGABYTE
        with suppress(ConnectionError):
            for _ in range(50):
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
                await writer.drain()
        assert await status_of(reader) == 413
        assert await is_answered(http)
        writer.close()


async def test_a_body_that_never_comes_is_given_up():
    async with service(FakeEngine()) as (served, port, http):
        served.limits = ServeLimits(request_timeout_seconds=0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head("Content-Length: 100") + b"{")
        assert await status_of(reader) == 408
        served.limits = ServeLimits()
        assert await is_answered(http)
        writer.close()


class AheadEngine(FakeEngine):
    """Makes its text whether or not it is read, as engines do."""

    async def generate(self, request):
        deltas: asyncio.Queue[TokenDelta] = asyncio.Queue()

        async def make():
            async for delta in super(AheadEngine, self).generate(request):
                deltas.put_nowait(delta)

        making = asyncio.create_task(make())
        try:
            while True:
                delta = await deltas.get()
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            making.cancel()


async def test_a_client_that_reads_a_byte_at_a_time_holds_up_nobody():
    slow = AheadEngine(["x" * 1000] * 20_000)
    async with service(slow) as (_, port, http):
        with socket.socket() as narrow:
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            narrow.setblocking(False)
            await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", port))
            reader, writer = await asyncio.open_connection(sock=narrow, limit=1024)
            writer.write(asking(stream=True))
            assert await status_of(reader) == 200
            for _ in range(20):
                assert len(await reader.readexactly(1)) == 1
                live = await http.get("/health/live")
                assert live.status_code == 200
            slow.words = ("a", "b")
            assert await is_answered(http)
            assert slow.num_running == 0, "a row does not wait for its client"
            writer.close()


async def test_a_model_without_a_chat_template_says_so_and_completes():
    engine = make_engine(tokenizer=make_tokenizer(chat_template=None))
    async with service(engine) as (served, _, http):
        refused = await http.post("/v1/chat/completions", json={"model": "m", "messages": CHAT})
        assert await is_answered(http)
        await served.close()
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "no_chat_template")
    assert "has no chat template" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_frees_its_row(stream):
    engine = FakeEngine()
    engine.gate.clear()
    async with service(engine) as (_, port, _):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(asking(stream=stream))
        async with asyncio.timeout(10):
            while not engine.num_running:
                await asyncio.sleep(0.001)
        writer.close()
        await until_no_row_is_left(engine)


@pytest.fixture
def _many_files():
    """Both ends of each connection are files of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * NUM_IDLE
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted if hard < 0 else min(wanted, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_many_files")
async def test_a_thousand_idle_connections_keep_nobody_from_an_answer():
    async with service(FakeEngine()) as (_, port, http):
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(NUM_IDLE)]
        for _, writer in idle[::2]:
            writer.write(head("Content-Length: 100"))
        assert await is_answered(http)
        for _, writer in idle:
            writer.close()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"{", "not JSON", id="half"),
        pytest.param(b"", "body", id="empty"),
        pytest.param(b"[]", "body", id="a list"),
        pytest.param(b"\xff\xfe\x00", "body", id="not text"),
        pytest.param(b"[" * 500_000, "body", id="deep"),
        pytest.param(b'{"model": "m", "prompt": "p", "seed": ' + b"9" * 100_000 + b"}", "body", id="a long number"),
        pytest.param(b'{"model": "m", "prompt": "\\ud800"}', "Unicode", id="half a character"),
        pytest.param(b'{"model": "m", "prompt": "p", "\\ud800": 1}', "Unicode", id="half a character as a name"),
    ],
)
async def test_a_body_that_cannot_be_read_is_told_so_and_the_next_one_is_answered(content, says):
    async with service(FakeEngine()) as (_, _, http):
        response = await http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
        error = response.json()["error"]
        assert (response.status_code, error["type"]) == (400, "invalid_request_error")
        assert says in error["message"]
        assert await is_answered(http)
