"""What clients notice of a new version: under load, versions are switched, rolled out step by step, and taken back.

A real Ray Serve on this machine, which is told what the operator plans; 16 clients stream short answers ceaselessly.
Each way to another version is gone as often as there are rounds, beside as many seconds without a change: requests and
those that failed, the time to a first token, and the longest pause within an answer. The version that is taken back is
a model of ten times the work, whose answers take too long. Exits with 1 where a request fails.

    PYTHONPATH=operator:workloads:tests python benchmarks/serve_rollout.py [--rounds 3]
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import torch
import uvloop

import serving_table
from comparison import tell_measured
from plinth_api.model_service import Canary
from record import spread, write_record
from rolled_out import RolledOut, rolled_out
from serve_engine import SUBJECTS, make_model, make_tokenizer

_CLIENTS = 16
_PROMPT_TOKENS, _NEW_TOKENS = 32, 24
_QUIET_SECONDS = 10.0
_AFTER_SECONDS = 3.0
"""In which the version before finishes what it has begun."""
_STEPWISE = Canary(steps=(25, 50), interval_seconds=3, max_latency_increase=10)
_STRICT = Canary(steps=(25, 50), interval_seconds=3, max_latency_increase=0.5)


@dataclass(frozen=True, slots=True)
class _Request:
    """One that has ended: when, on the clock of the process, and what its client saw; None for what never came."""

    ended: float
    failed: str | None
    first_token: float | None
    longest_pause: float | None


class Load:
    """Clients that ask without a pause, in a thread of their own."""

    def __init__(self, url: str) -> None:
        self.requests: list[_Request] = []
        self._url, self._random, self._ending = url, random.Random(0), False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the block they ask."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._ending = True
            thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._ask_all())

    async def _ask_all(self) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(self._client(session) for _ in range(_CLIENTS)))

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while not self._ending:
            self.requests.append(await self._ask(session))

    async def _ask(self, session: aiohttp.ClientSession) -> _Request:
        prompt = self._random.choices(range(SUBJECTS["small"].config["vocab_size"]), k=_PROMPT_TOKENS)
        body = {"model": "tiny", "prompt": prompt, "max_tokens": _NEW_TOKENS, "temperature": 0, "stream": True}
        seen, failed, text = [time.perf_counter()], None, b""
        try:
            async with session.post(f"{self._url}/v1/completions", json=body) as answer:
                async for piece in answer.content.iter_any():
                    seen.append(time.perf_counter())
                    text += piece
            if answer.status != 200 or b'"error"' in text or not text.endswith(b"[DONE]\n\n"):
                failed = f"{answer.status}: {text[-200:].decode()}"
        except aiohttp.ClientError as error:
            failed = f"{type(error).__name__}: {error}"
        pauses = [after - before for before, after in pairwise(seen[1:])]
        first_token = seen[1] - seen[0] if len(seen) > 1 else None
        return _Request(time.perf_counter(), failed, first_token, max(pauses, default=None))


def write_models(folder: Path) -> dict[str, str]:
    """URIs of two versions and of one that is ten times as much work."""
    uris = {}
    for name, subject in (("first", "small"), ("second", "small"), ("slow", "base")):
        make_model(SUBJECTS[subject], torch.device("cpu")).save_pretrained(folder / name)
        make_tokenizer(SUBJECTS[subject].config["vocab_size"]).save_pretrained(folder / name)
        uris[name] = f"file://{folder / name}"
    return uris


def measure(rounds: int) -> dict[str, Any]:
    """All figures, by way to another version."""
    with tempfile.TemporaryDirectory(prefix="serve-rollout-") as found:
        folder = Path(found)
        uris = write_models(folder)
        with rolled_out(folder, folder / "first") as service:
            load = Load(service.url)
            spans: dict[str, list[tuple[float, float]]] = {}
            with load.running():
                time.sleep(_AFTER_SECONDS)
                for number in range(rounds):
                    for way, go in _ways(service, uris).items():
                        began = time.perf_counter()
                        go()
                        spans.setdefault(way, []).append((began, time.perf_counter()))
                        time.sleep(_AFTER_SECONDS)
                    sys.stderr.write(f"round {number + 1} of {rounds}: {len(load.requests)} requests\n")
    return {way: _figures(load.requests, of_way) for way, of_way in spans.items()}


def _ways(service: RolledOut, uris: Mapping[str, str]) -> dict[str, Callable[[], None]]:
    def roll_out(name: str, canary: Canary, phase: str) -> None:
        ended = service.roll_out(uris[name], canary)
        assert ended.phase == phase, ended
        service.wait_in_service(uris[name] if phase == "Promoted" else ended.stable.uri)

    return {
        "quiet": lambda: time.sleep(_QUIET_SECONDS),
        "switch": lambda: service.switch(uris["second"]),
        "promotion": lambda: roll_out("first", _STEPWISE, "Promoted"),
        "rollback": lambda: roll_out("slow", _STRICT, "RolledBack"),
    }


def _figures(requests: Sequence[_Request], spans: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Of requests that ended within spans of time, or soon after one."""
    parts = [[one for one in requests if began <= one.ended < end + _AFTER_SECONDS] for began, end in spans]
    failures = [one.failed for part in parts for one in part if one.failed is not None]
    figures: dict[str, Any] = {
        "seconds": spread([end - began for began, end in spans], 2),
        "requests": sum(map(len, parts)),
        "failed": len(failures),
        "failed_share": {"median": len(failures) / sum(map(len, parts))},
        "requests_per_second": spread(
            [len(part) / (end + _AFTER_SECONDS - began) for part, (began, end) in zip(parts, spans, strict=True)], 2
        ),
    }
    if failures:
        figures["failures"] = sorted(set(failures))[:5]
    for name in ("first_token", "longest_pause"):
        told = [[value for one in part if (value := getattr(one, name)) is not None] for part in parts]
        hundredths = [statistics.quantiles(values, n=100, method="inclusive") for values in told]
        figures[f"{name}_seconds_p50"] = spread([one[49] for one in hundredths], 4)
        figures[f"{name}_seconds_p99"] = spread([one[98] for one in hundredths], 4)
    return figures


def main() -> int:
    """Measure, write the record, and say whether a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-record", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments.rounds)
    kept = tell_measured(serving_table.ROWS, "serve_rollout", figures)
    if not arguments.no_record:
        settings = {"clients": _CLIENTS, "prompt_tokens": _PROMPT_TOKENS, "new_tokens": _NEW_TOKENS}
        settings["rounds"] = arguments.rounds
        packages = ("torch", "transformers", "ray", "fastapi")
        path = write_record(
            "serve_rollout", torch.device("cpu"), settings, figures, packages=packages, has_own_load=True
        )
        sys.stdout.write(f"{path}\n")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
