"""A server under mixed load for a while: what was asked and answered, and what the server held, second by second.

Enters: how long, and how much. Leaves: a record of it, and what is wrong in it.
"""

import asyncio
import json
import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import aiohttp

from soak_load import KINDS, WORDS, Client, Kind
from soak_server import ADAPTERS, BROKEN, MAX_BATCH, MODELS, NAME, write_models
from unit.plinth_workloads.serving.tiny_model import CONTEXT_LENGTH

SOURCES = [str(Path(__file__).parents[1] / folder) for folder in ("operator", "workloads", "tests")]
MAX_GROWTH_BYTES = 24 * 2**20
"""Of its own memory after the warm-up: what allocators and a second model need by chance was up to 12 MiB; one KiB
that each request leaves behind is twice as much in half an hour."""
_WARM_UP = 1 / 4
"""Of the time: every kind has been asked, both models have been loaded."""
_WORKERS = 12
_CHANGE_SECONDS = 2.0
_BLOCK_TOKENS = 16


@dataclass(frozen=True)
class Sample:
    """What the server's process held, so many seconds after the beginning."""

    seconds: float
    own_bytes: int
    files: int
    threads: int


@dataclass
class Record:
    """All that is known of a soak."""

    samples: list[Sample] = field(default_factory=list)
    statuses: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    latencies: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    problems: list[str] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    changes: Counter[str] = field(default_factory=Counter)

    @property
    def num_requests(self) -> int:
        """Of all kinds."""
        return sum(sum(counts.values()) for counts in self.statuses.values())

    @property
    def growth_bytes(self) -> float:
        """From the quarter after the warm-up to the last one, by their medians."""
        warm = self.samples[int(len(self.samples) * _WARM_UP) :]
        third = max(1, len(warm) // 3)
        first, last = ([one.own_bytes for one in part] for part in (warm[:third], warm[-third:]))
        return median(last) - median(first)

    def as_json(self) -> dict[str, Any]:
        """Without single requests and samples."""
        return {
            "requests": {
                name: {str(status): n for status, n in counts.items()} for name, counts in self.statuses.items()
            },
            "changes": dict(self.changes),
            "growth_bytes": self.growth_bytes,
            "before": self.before,
            "after": self.after,
            "problems": self.problems,
        }


class Server:
    """A server's process."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process, self.port = process, port
        self._one_command = asyncio.Lock()

    async def tell(self, **command: Any) -> dict[str, Any]:
        """What the server holds once it has done what it is told."""
        assert self._process.stdin is not None
        async with self._one_command:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            return await self.hear()

    async def hear(self) -> dict[str, Any]:
        """The next line."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), timeout=60)
        assert line, "the server has ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def sample(self, seconds: float) -> Sample:
        """What its process holds now."""
        proc = Path(f"/proc/{self._process.pid}")
        told = dict(re.findall(r"^(\w+):\s+(\d+)", (proc / "status").read_text(), re.MULTILINE))
        # Its own memory, also what is swapped out: pages of files come and go as the machine has room for them.
        own_bytes = (int(told["RssAnon"]) + int(told["VmSwap"])) * 1024
        return Sample(seconds, own_bytes, len(os.listdir(proc / "fd")), int(told["Threads"]))


@asynccontextmanager
async def soaked_server(folder: Path) -> AsyncIterator[Server]:
    """A server of the models in a folder, ended at the end of its stdin."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES), "OMP_NUM_THREADS": "1"}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "soak_server", str(folder), stdin=pipe, stdout=pipe, env=environment
    )
    server = Server(process, 0)
    try:
        server.port = (await server.hear())["port"]
        yield server
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), timeout=60) == 0
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def soak(folder: Path, *, seconds: float, requests_per_second: float, seed: int = 0) -> Record:
    """Load a server for so long, and change what it serves meanwhile."""
    write_models(folder)
    record = Record()
    async with soaked_server(folder) as server:
        await server.tell(adapters={ADAPTERS[0]: ADAPTERS[0]})
        async with _client(server, seed) as client:
            said = await _greedy(client)
        record.before = await server.tell()
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(_watch(server, record, began, seconds))
            group.create_task(_change(server, record, began, seconds))
            for number in range(_WORKERS):
                pause = _WORKERS / requests_per_second
                group.create_task(_work(server, record, began, seconds, pause, Random(seed * 1000 + number)))
        async with _client(server, seed) as client:
            await _settle(client, record)
            if await _greedy(client) != said:
                record.problems.append("the greedy answers differ from those at the beginning")
        await asyncio.sleep(0.5)
        record.after = await server.tell() | {"sample": asdict(server.sample(time.monotonic() - began))}
    record.problems += left_behind(record)
    return record


@asynccontextmanager
async def _client(server: Server, seed: int) -> AsyncIterator[Client]:
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        yield Client(session, server.port, Random(seed))


async def _greedy(client: Client) -> list[str]:
    """What is said without chance, by the model and by an adapter."""
    said = []
    for model in (NAME, ADAPTERS[0]):
        for prompt in WORDS:
            _, answer = await client.post({"model": model, "prompt": prompt, "max_tokens": 30, "temperature": 0})
            said.append(answer["choices"][0]["text"])
    return said


async def _watch(server: Server, record: Record, began: float, seconds: float) -> None:
    """Two hundred samples, or one a second where that is less or two where that is more."""
    while (now := time.monotonic() - began) < seconds:
        record.samples.append(server.sample(round(now, 2)))
        await asyncio.sleep(max(0.5, min(1.0, seconds / 200)))


async def _change(server: Server, record: Record, began: float, seconds: float) -> None:
    """Adapters come, change and go all the time; another version comes, then a broken one, then the first again."""
    versions = [MODELS[1], BROKEN, MODELS[0]]
    turns = max(1, int(seconds / 120))
    times = [seconds * (turn + at) / turns for turn in range(turns) for at in (0.15, 0.5, 0.75)]
    schedule = list(zip(times, versions * turns, strict=True))
    number = 0
    while (now := time.monotonic() - began) < seconds:
        if schedule and now >= schedule[0][0]:
            _, version = schedule.pop(0)
            held = await server.tell(model=version)
            expected = MODELS[1] if version == BROKEN else version
            if held["model"] != expected or bool(held["load_error"]) != (version == BROKEN):
                record.problems.append(f"after a change to {version}: {held}")
            record.changes[f"version {version}"] += 1
        number += 1
        later = {ADAPTERS[1]: ADAPTERS[number % 2]} if number % 3 else {}
        await server.tell(adapters={ADAPTERS[0]: ADAPTERS[0], **later})
        record.changes["adapters"] += 1
        await asyncio.sleep(_CHANGE_SECONDS)


async def _work(
    server: Server, record: Record, began: float, seconds: float, pause_seconds: float, random: Random
) -> None:
    async with _client(server, random.randrange(2**32)) as client:
        # All kinds once, whatever chance says later.
        kinds = random.sample(KINDS, len(KINDS))
        while time.monotonic() - began < seconds:
            kind = kinds.pop() if kinds else random.choices(KINDS, [kind.share for kind in KINDS])[0]
            await _ask(client, kind, record, began)
            await asyncio.sleep(random.expovariate(1 / pause_seconds))


async def _ask(client: Client, kind: Kind, record: Record, began: float) -> None:
    asked = time.monotonic()
    try:
        status = await kind.ask(client)
    except Exception as error:
        record.problems.append(f"{asked - began:.1f} s, {kind.name}: {type(error).__name__}: {error}"[:300])
        return
    record.statuses[kind.name][status] += 1
    record.latencies[kind.name].append((asked - began, time.monotonic() - asked))
    if status not in kind.statuses:
        record.problems.append(f"{asked - began:.1f} s, {kind.name}: status {status}")


async def _settle(client: Client, record: Record) -> None:
    """Nothing is answered, nothing waits, and no row holds keys and values, in the state and in the metrics."""
    for _ in range(100):
        state = json.loads((await client.get("/-/state"))[1])
        metrics = _values((await client.get("/metrics"))[1].splitlines())
        busy = {name: value for name, value in metrics.items() if value}
        if not (state["running"] or state["waiting"] or busy):
            return
        await asyncio.sleep(0.1)
    record.problems.append(f"after the load: {state['running']} running, {state['waiting']} waiting, {busy}")


def _values(lines: Iterable[str]) -> dict[str, float]:
    names = ("plinth_requests_running", "plinth_requests_waiting", "plinth_kv_cache_usage_perc")
    return {line.split("{")[0]: float(line.split()[-1]) for line in lines if line.startswith(names)}


def left_behind(record: Record) -> list[str]:
    """What the server holds in the end, and should not."""
    before, after = record.before, record.after
    warm = record.samples[int(len(record.samples) * _WARM_UP) :]
    most_blocks = MAX_BATCH * CONTEXT_LENGTH // _BLOCK_TOKENS
    found: Sequence[tuple[bool, str]] = (
        (record.growth_bytes > MAX_GROWTH_BYTES, f"memory grew by {record.growth_bytes / 2**20:.1f} MiB"),
        (after["tasks"] > before["tasks"] + 2, f"{before['tasks']} tasks became {after['tasks']}"),
        (after["clients"] > 0, f"{after['clients']} clients still have places"),
        (after["prefix_blocks"] > most_blocks, f"{after['prefix_blocks']} blocks are found, {most_blocks} may be"),
        (after["slots"] > MAX_BATCH, f"{after['slots']} slots"),
        (
            after["sample"]["files"] > record.samples[0].files + 4,
            f"{record.samples[0].files} open files became {after['sample']['files']}",
        ),
        (
            after["sample"]["threads"] > max(one.threads for one in warm[: len(warm) // 2 + 1]) + 2,
            f"{warm[0].threads} threads became {after['sample']['threads']}",
        ),
    )
    return [text for is_wrong, text in found if is_wrong]
