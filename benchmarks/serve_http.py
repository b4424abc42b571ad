"""What HTTP costs: 32 clients who stream, through plain ASGI and through Ray Serve, beside the engine by itself.

The light engine answers in three ways that take turns: asked in its own process, behind uvicorn in a process beside,
and as a service of Ray Serve with what services have on clusters in their environment. Each client asks three times,
one after the other. Clients and servers share the machine's cores; once more, the engine or a server, whichever is
asked, has the first core, with one thread for the model, and the clients the second. One client alone is measured
beside a bare loop over the model. Time to first token is measured at three quarters of what the service can do, found
right before, with requests that come at random times for 40 seconds, as often as there are rounds.

    python benchmarks/serve_http.py [--model small base] [--rounds 3]
"""

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import torch
import uvloop

from cores import pin
from plinth_api.engine_rules import SERVE_ENVIRONMENT
from record import spread, write_record
from serve_engine import CLIENTS, PROMPT_TOKENS, SUBJECTS, Sides, make_model, make_tokenizer
from side_processes import side_processes
from stream_client import StreamClient
from turns import ratios, take_turns

_SERVERS = ("asgi", "ray_serve")
_REQUESTS_EACH = 3
_BLOCKS = 3
"""In each round: one of a few seconds is as far off as this machine's speed changes meanwhile."""
_LOAD = 0.75
_LOAD_SECONDS = 40.0
_READY_SECONDS = 60.0
_PATH = "/v1/completions"
_DRAINS_AT_ONCE = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1", "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1"}
"""Else it is half a minute until a service has ended."""
_SERVER_CORE, _CLIENT_CORE = {0}, {1}


def serve_plain(folder: str, port: int) -> None:
    """The server process of plain ASGI."""
    import uvicorn

    from plinth_workloads.models.load import load_for_inference
    from plinth_workloads.serving.asgi import build_asgi
    from plinth_workloads.serving.replica_memory import tidy_memory
    from plinth_workloads.serving.served_model import ServedModel
    from plinth_workloads.serving.served_names import ServedNames
    from plinth_workloads.serving.torch_engine import TorchEngine

    async def serve() -> None:
        served = ServedModel(
            lambda uri: TorchEngine(*load_for_inference(uri, tracking_uri="", cache_dir=Path(folder) / "cache")),
            tidy=tidy_memory,
        )
        served.set_target(f"file://{folder}")
        await served.wait_loaded()
        app = build_asgi(served, ServedNames("m"))
        # No connection is closed while clients come at random times.
        config = uvicorn.Config(app, port=port, log_level="warning", timeout_keep_alive=int(2 * _LOAD_SECONDS))
        await uvicorn.Server(config).serve()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


@contextmanager
def server(command: list[str], cores: set[int], **environment: str) -> Iterator[None]:
    """A process that is ended; it and all below it run on some cores, with as many threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(cores)), **environment}
    process = subprocess.Popen(["taskset", "-c", _listed(cores), *command], env=environment, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


class Clients:
    """Who asks a server, and what he waits for."""

    def __init__(self, url: str, sides: Sides) -> None:
        self._url, self._sides = url, sides
        self._loop = uvloop.new_event_loop()

    def all_answered(self, num_clients: int) -> float:
        """Seconds until all have their answers."""

        async def run() -> float:
            with closing(StreamClient(self._url, _PATH)) as client:
                return await _seconds_of(num_clients, lambda: self._ask(client, self._sides.prompts(1)[0]))

        return self._loop.run_until_complete(run())

    def under_load(self, num_clients: int) -> dict[str, float]:
        """Seconds to the first token at three quarters of what so many clients get."""
        requests_per_second = _LOAD * num_clients * _REQUESTS_EACH / self.all_answered(num_clients)
        hundredths = statistics.quantiles(self._first_tokens(requests_per_second), n=100, method="inclusive")
        p50, p99 = hundredths[49], hundredths[98]
        return {
            "requests_per_second": requests_per_second,
            "seconds_to_first_token_p50": p50,
            "seconds_to_first_token_p99": p99,
            "p99_over_p50": p99 / p50,
        }

    def _first_tokens(self, requests_per_second: float) -> list[float]:
        """Of requests that come at random times."""
        random_times = random.Random(0)

        async def run() -> list[float]:
            with closing(StreamClient(self._url, _PATH)) as client:
                tasks, ends = [], time.monotonic() + _LOAD_SECONDS
                while time.monotonic() < ends:
                    tasks.append(asyncio.create_task(self._ask(client, self._sides.prompts(1)[0])))
                    await asyncio.sleep(random_times.expovariate(requests_per_second))
                return list(await asyncio.gather(*tasks))

        return self._loop.run_until_complete(run())

    async def _ask(self, client: StreamClient, prompt: list[int]) -> float:
        new_tokens = self._sides.subject.new_tokens
        body = {"model": "m", "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        answer = await client.ask(body)
        assert f'"completion_tokens":{new_tokens}'.encode() in answer.end, answer.end
        return answer.first_seconds


async def _seconds_of(num_clients: int, ask: Callable[[], Awaitable[float]]) -> float:
    """Seconds until so many clients have all their answers."""

    async def client() -> None:
        for _ in range(_REQUESTS_EACH):
            await ask()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(num_clients)))
    return time.perf_counter() - began


def measure(name: str, *, rounds: int) -> dict[str, Any]:
    """All figures of one model."""
    everywhere = os.sched_getaffinity(0)
    with _asked(name, everywhere, everywhere) as (blocks, plain, serve):
        alone = take_turns({side: blocks[side] for side in ("bare", *_SERVERS)}, _BLOCKS * rounds, 1)
        seconds = take_turns({side: blocks[side] for side in ("engine", *_SERVERS)}, _BLOCKS * rounds, CLIENTS)
        first = take_turns({"asgi": plain.under_load, "ray_serve": serve.under_load}, rounds, CLIENTS)
    with _asked(name, _SERVER_CORE, _CLIENT_CORE) as (blocks, _, _):
        apart = take_turns({side: blocks[side] for side in ("engine", *_SERVERS)}, _BLOCKS * rounds, CLIENTS)
    return {
        **_throughput(name, seconds),
        "one_client_seconds_per_token": {
            side: spread([one / _REQUESTS_EACH / SUBJECTS[name].new_tokens for one in took])
            for side, took in alone.items()
        },
        "one_client_seconds_per_token_over_bare": {
            side: spread(ratios(alone[side], alone["bare"]), 3) for side in _SERVERS
        },
        "under_load": {
            side: {name: spread([one[name] for one in found], 4) for name in found[0]} for side, found in first.items()
        },
        "clients_on_a_core_of_their_own": _throughput(name, apart),
    }


@contextmanager
def _asked(
    name: str, server_cores: set[int], client_cores: set[int]
) -> Iterator[tuple[dict[str, Callable[[int], float]], Clients, Clients]]:
    """What answers so many clients, in seconds: a bare loop, the engine, both servers; and the servers' clients."""
    subject, before = SUBJECTS[name], os.sched_getaffinity(0)
    sides = Sides(subject, torch.device("cpu"))
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, before)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        make_model(subject, torch.device("cpu")).save_pretrained(folder)
        make_tokenizer(subject.config["vocab_size"]).save_pretrained(folder)
        ports = [_free_port(), _free_port()]
        command = [sys.executable, str(Path(__file__).resolve()), "--plain", folder, str(ports[0])]
        stack.enter_context(server(command, server_cores))
        document = Path(folder) / "serve.json"
        model = {"uri": f"file://{folder}"}
        run = {"name": "m", "engine": "torch", "trackingUri": "", "gpus": 0, "workDir": folder}
        # As many threads as the other sides have: Ray gives a replica as many as it asks for CPUs.
        document.write_text(json.dumps({**run, "cpus": len(server_cores), "model": model}))
        command = [sys.executable, "-m", "plinth_workloads.serve", str(document), "--port", str(ports[1])]
        stack.enter_context(server(command, server_cores, **SERVE_ENVIRONMENT, **_DRAINS_AT_ONCE))
        models = stack.enter_context(side_processes(_model, ["bare", "engine"], name, server_cores))
        os.sched_setaffinity(0, client_cores)
        plain, serve = (Clients(_ready(port), sides) for port in ports)
        yield {**models, "asgi": plain.all_answered, "ray_serve": serve.all_answered}, plain, serve


def _model(side: str, name: str, cores: set[int]) -> Callable[[int], float]:
    """A bare loop over the model, or the engine, each in a process of its own."""
    pin(os.getpid(), cores)
    torch.set_num_threads(len(cores))
    sides, loop = Sides(SUBJECTS[name], torch.device("cpu")), asyncio.new_event_loop()
    if side == "bare":
        return lambda clients: sum(sides.bare(clients) for _ in range(_REQUESTS_EACH))
    loop.run_until_complete(sides.engine.start())
    return lambda clients: loop.run_until_complete(_seconds_of(clients, lambda: sides.ours(1)))


def _throughput(name: str, seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    num_tokens = CLIENTS * _REQUESTS_EACH * SUBJECTS[name].new_tokens
    return {
        "tokens_per_second": {side: spread([num_tokens / one for one in took], 1) for side, took in seconds.items()},
        "share_of_engine": {side: spread(ratios(seconds["engine"], seconds[side]), 3) for side in _SERVERS},
    }


def _listed(cores: set[int]) -> str:
    """As `taskset` takes them."""
    return ",".join(str(core) for core in sorted(cores))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ready(port: int) -> str:
    """The server's URL, once it answers."""
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _READY_SECONDS

    async def wait() -> None:
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < deadline:
                try:
                    async with session.get(f"{url}/health") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.2)
            raise TimeoutError(f"{url} does not answer")

    asyncio.run(wait())
    return url


def main() -> int:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=sorted(SUBJECTS), default=["small"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("--plain", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        serve_plain(arguments.plain[0], int(arguments.plain[1]))
        return 0
    figures = {name: measure(name, rounds=arguments.rounds) for name in arguments.model}
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    if not arguments.no_record:
        settings = {"clients": CLIENTS, "requests_each": _REQUESTS_EACH, "prompt_tokens": PROMPT_TOKENS}
        settings["rounds"] = arguments.rounds
        packages = ("torch", "transformers", "ray", "uvicorn", "fastapi")
        path = write_record("serve_http", torch.device("cpu"), settings, figures, packages=packages, has_own_load=True)
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
