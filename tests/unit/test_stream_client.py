"""The benchmarks' client of streamed answers: it sees their beginning and end, and what is no answer."""

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from stream_client import StreamClient

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Request-Id: 10\r\n\r\n"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request):
    return "asyncio", {"use_uvloop": request.param}


@asynccontextmanager
async def answering(*answers, pause=0.0):
    """A server that writes the pieces of an answer for each request, in turn; None closes the connection."""
    asked, rest = [], list(answers)

    async def serve(reader, writer):
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                asked.append(await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0])))
                for number, piece in enumerate(rest.pop(0)):
                    if piece is None:
                        writer.close()
                        return
                    await asyncio.sleep(pause if number else 0)
                    writer.write(piece)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = StreamClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "/v1/completions")
    try:
        yield client, asked
    finally:
        client.close()
        server.close()


async def test_an_answer_ends_with_its_last_chunk_and_its_connection_is_used_again():
    pieces = (HEAD, b"3\r\na\n\n\r\n", b"4\r\nbc\n\n", b"\r\n0\r\n\r\n")
    async with answering(pieces, pieces, pause=0.05) as (client, asked):
        first, second = await client.ask({"n": 1}), await client.ask({"n": 2})
        assert len(client._idle) == 1
    assert asked == [b'{"n": 1}', b'{"n": 2}']
    for answer in (first, second):
        assert answer.end.endswith(b"4\r\nbc\n\n\r\n0\r\n\r\n")
        assert 0 < answer.first_seconds < 0.05


async def test_a_connection_that_the_server_closed_is_not_used_again():
    whole = (HEAD, b"3\r\na\n\n\r\n0\r\n\r\n")
    async with answering((*whole, None), whole) as (client, asked):
        await client.ask({"n": 1})
        await asyncio.sleep(0.05)
        await client.ask({"n": 2})
    assert asked == [b'{"n": 1}', b'{"n": 2}']


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ((b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n",), "429 Too Many"),
        ((HEAD, b"3\r\na\n\n\r\n", None), "closed the connection"),
    ],
)
async def test_what_is_no_whole_answer_is_an_error(pieces, message):
    async with answering(pieces) as (client, _):
        with pytest.raises(ConnectionError, match=message):
            await asyncio.wait_for(client.ask({}), 10)
