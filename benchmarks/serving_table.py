"""One table of what serving reaches: ours, the peer or the bound, their ratio, and what it must be.

Reads the records of the other benchmarks; `make bench-serve` measures them and prints it last. Exits with 1 where a
limit is not kept.

    python benchmarks/serving_table.py [--device cpu]
"""

import sys
from collections.abc import Mapping

from comparison import Figures, Reading, Row, main


def _speed(model: str, ours: str, other: str) -> Reading:
    def read(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
        found = figures[model]
        speeds = found["tokens_per_second"]
        return _told(speeds[ours]), _told(speeds[other]), found[f"{ours}_over"][other]

    return read


def _one_client(model: str) -> Reading:
    def read(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
        found = figures[model]
        return *_times(found, "ours"), found["one_client_seconds_per_token_over_bare"]

    return read


def _one_client_of(side: str) -> Reading:
    def read(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
        found = figures["small"]
        return *_times(found, side), found["one_client_seconds_per_token_over_bare"][side]

    return read


def _pause(model: str) -> Reading:
    def read(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
        steps = figures[model]["steps_while_adapters_are_attached"]
        longest, median = (f"{1000 * steps[f'{name}_seconds']['median']:.1f} ms" for name in ("longest", "median"))
        return longest, median, steps["longest_over_median"]

    return read


def _share(side: str) -> Reading:
    def read(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
        found = figures["small"]
        speeds = found["tokens_per_second"]
        return _told(speeds[side]), _told(speeds["engine"]), found["share_of_engine"][side]

    return read


def _tail(side: str) -> Reading:
    def read(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
        found = figures["small"]["under_load"][side]
        p99, p50 = (f"{1000 * found[f'seconds_to_first_token_{name}']['median']:.0f} ms" for name in ("p99", "p50"))
        return p99, p50, found["p99_over_p50"]

    return read


def _failed(way: str) -> Reading:
    def read(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
        found, quiet = figures[way], figures["quiet"]
        return (
            f"{found['failed']} of {found['requests']}",
            f"{quiet['failed']} of {quiet['requests']}",
            found["failed_share"],
        )

    return read


def _times(found: Figures, side: str) -> tuple[str, str]:
    """For a token of one client: this side's and the bare loop's."""
    ours, bare = (found["one_client_seconds_per_token"][name]["median"] for name in (side, "bare"))
    return f"{1000 * ours:.2f} ms", f"{1000 * bare:.2f} ms"


def _told(speed: Mapping[str, float]) -> str:
    return f"{speed['median']:,.0f} tokens/s"


_PEER = "transformers' continuous batching"
_WEIGHTS = {"small": "8.4M", "base": "95M"}


def _engine_rows(model: str, *, over_peer: float) -> tuple[Row, ...]:
    size = _WEIGHTS[model]
    return (
        Row("serve_engine", f"{size}, 32 clients: bound, a bare loop", _speed(model, "ours", "bare"), 0.8),
        Row("serve_engine", f"{size}, 32 clients, as it is by default: {_PEER}", _speed(model, "ours", "peer"), None),
        Row("serve_engine", f"{size}, 32 clients, compiled: {_PEER}", _speed(model, "compiled", "peer"), over_peer),
        Row("serve_engine", f"{size}, one client's time for a token: a bare loop", _one_client(model), 1.2, False),
        Row("serve_adapters", f"{size}, 32 adapters in a batch: one", _speed(model, "all", "one"), 0.7),
        Row("serve_adapters", f"{size}, longest step as adapters come: a step", _pause(model), 2.0, False),
    )


ROWS = (
    *_engine_rows("small", over_peer=10),
    *_engine_rows("base", over_peer=3),
    Row("serve_http", "streamed, plain ASGI: the engine by itself", _share("asgi"), 0.9),
    Row("serve_http", "streamed, Ray Serve: the engine by itself", _share("ray_serve"), 0.7),
    Row("serve_http", "one client's time for a token, plain ASGI: a bare loop", _one_client_of("asgi"), 1.2, False),
    Row("serve_http", "one client's time for a token, Ray Serve: a bare loop", _one_client_of("ray_serve"), 1.2, False),
    Row("serve_http", "first token at 75% load, plain ASGI, p99: p50", _tail("asgi"), 3.0, False),
    Row("serve_http", "first token at 75% load, Ray Serve, p99: p50", _tail("ray_serve"), 3.0, False),
    Row("serve_rollout", "failed requests as versions are switched: without", _failed("switch"), 0, False),
    Row("serve_rollout", "failed requests as a version comes by steps: without", _failed("promotion"), 0, False),
    Row("serve_rollout", "failed requests as a version is taken back: without", _failed("rollback"), 0, False),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, ROWS))
