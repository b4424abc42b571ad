"""Pieces of streams go out at once for one client, together for many; what is no stream neither waits nor counts."""

import asyncio

import pytest

from plinth_workloads.serving import paced_streams
from plinth_workloads.serving.paced_streams import PacedStreams
from unit.plinth_workloads.serving.tiny_model import until

pytestmark = pytest.mark.anyio


class Streams:
    """An application that streams what it is told, and what its clients are sent."""

    def __init__(self):
        self.now = 0.0
        self.asgi = PacedStreams(self.answer, clock=lambda: self.now)
        self.sent = []
        self.free = asyncio.Event()
        self.free.set()
        self.error = None

    async def answer(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", scope["answers"])]})
        while (piece := await receive()) is not None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send(self, message):
        if message["type"] == "http.response.body":
            if self.error:
                raise self.error
            await self.free.wait()
            self.sent.append((message["body"], message["more_body"]))

    def open(self, answers=b"text/event-stream; charset=utf-8"):
        """The queue of one answer's pieces, and its task."""
        pieces = asyncio.Queue()
        return pieces, asyncio.create_task(self.asgi({"type": "http", "answers": answers}, pieces.get, self.send))


async def settled(pieces, *told):
    for piece in told:
        pieces.put_nowait(piece)
    await until(pieces.empty)
    await asyncio.sleep(0)


@pytest.fixture
def patient(monkeypatch):
    """One piece a second, so that only the clock and the end of an answer decide what is sent."""
    monkeypatch.setattr(paced_streams, "_PIECES_PER_SECOND", 1)
    monkeypatch.setattr(paced_streams, "_LONGEST_PAUSE_SECONDS", 60)


async def test_one_client_has_each_piece_at_once():
    streams = Streams()
    pieces, task = streams.open()
    for piece in (b"a", b"b", b"c"):
        await settled(pieces, piece)
        streams.now += 0.01
    assert streams.sent == [(b"a", True), (b"b", True), (b"c", True)]
    pieces.put_nowait(None)
    await task
    assert streams.sent[3:] == [(b"", False)]


async def test_of_many_each_has_the_first_at_once_and_later_ones_together(patient):
    streams = Streams()
    opened = [streams.open() for _ in range(8)]
    for pieces, _ in opened:
        await settled(pieces, b"1")
    assert streams.sent == [(b"1", True)] * 8
    streams.now += 4
    for pieces, _ in opened:
        await settled(pieces, b"2", b"3")
    assert len(streams.sent) == 8
    for pieces, task in opened:
        pieces.put_nowait(None)
        await task
    assert streams.sent[8:] == [(b"23", False)] * 8


async def test_what_is_no_stream_neither_counts_nor_waits(patient):
    streams = Streams()
    pieces, task = streams.open()
    whole = [streams.open(b"application/json") for _ in range(8)]
    for one, _ in whole:
        await settled(one, b"w", b"w")
    assert streams.sent == [(b"w", True)] * 16
    await settled(pieces, b"1")
    streams.now += 1
    await settled(pieces, b"2")
    assert streams.sent[16:] == [(b"1", True), (b"2", True)]
    for one, ended in [*whole, (pieces, task)]:
        one.put_nowait(None)
        await ended


async def test_a_stream_that_has_ended_no_longer_counts(patient):
    streams = Streams()
    opened = [streams.open() for _ in range(8)]
    for pieces, task in opened:
        await settled(pieces, b"1")
        pieces.put_nowait(None)
        await task
    pieces, task = streams.open()
    await settled(pieces, b"1")
    streams.now += 1
    await settled(pieces, b"2")
    assert streams.sent[-1] == (b"2", True)
    pieces.put_nowait(None)
    await task


async def test_after_the_pause_a_piece_takes_those_before_it_along(patient):
    streams = Streams()
    pieces, task = streams.open()
    await settled(pieces, b"a", b"b")
    streams.now += 1
    await settled(pieces, b"c")
    assert streams.sent == [(b"a", True), (b"bc", True)]
    pieces.put_nowait(None)
    await task


async def test_what_is_held_back_follows_by_itself(monkeypatch):
    monkeypatch.setattr(paced_streams, "_LONGEST_PAUSE_SECONDS", 0.01)
    streams = Streams()
    pieces, task = streams.open()
    await settled(pieces, b"a", b"b", b"c")
    await until(lambda: len(streams.sent) == 2)
    assert streams.sent == [(b"a", True), (b"bc", True)]
    pieces.put_nowait(None)
    await task


async def test_a_client_that_has_gone_is_told_to_the_application(patient, monkeypatch):
    monkeypatch.setattr(paced_streams, "_LONGEST_PAUSE_SECONDS", 0.2)
    streams = Streams()
    pieces, task = streams.open()
    await settled(pieces, b"a")
    before = asyncio.all_tasks()
    streams.error = RuntimeError("gone")
    await settled(pieces, b"b")
    (later,) = asyncio.all_tasks() - before
    await later
    pieces.put_nowait(b"c")
    with pytest.raises(RuntimeError, match="gone"):
        await task


async def test_a_client_that_reads_slowly_holds_the_application_up(monkeypatch):
    monkeypatch.setattr(paced_streams, "_PIECES_PER_SECOND", 1e9)
    streams = Streams()
    pieces, task = streams.open()
    streams.free.clear()
    for piece in (b"a", b"b", b"c", None):
        pieces.put_nowait(piece)
    await until(lambda: pieces.qsize() == 3)
    await asyncio.sleep(0.02)
    assert pieces.qsize() == 3
    streams.free.set()
    await task
    assert b"".join(body for body, _ in streams.sent) == b"abc"


async def test_an_answer_that_is_given_up_sends_nothing_more(patient):
    streams = Streams()
    pieces, task = streams.open()
    before = asyncio.all_tasks()
    await settled(pieces, b"a", b"b")
    (later,) = asyncio.all_tasks() - before
    task.cancel()
    await asyncio.gather(task, later, return_exceptions=True)
    assert later.cancelled()
    assert streams.sent == [(b"a", True)]
