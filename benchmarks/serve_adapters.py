"""What LoRA adapters cost the light engine: 32 clients with 32 adapters, with one, and with none; and attaching one.

The same llama and prompts as in serve_engine.py; adapters of rank 8 on all linear layers. The sides take turns. While
32 clients are answered with 32 adapters, others are attached one after another: the longest of the steps, with what is
done before it, is compared with the median, in as many engines as there are rounds.

    python benchmarks/serve_adapters.py [--device cuda] [--model small base] [--rounds 5]
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

import serving_table
from comparison import tell_measured
from plinth_workloads.serving.replica_memory import tidy_memory
from record import spread, write_record
from serve_engine import CLIENTS, PROMPT_TOKENS, SUBJECTS, Sides, make_model
from turns import ratios, take_turns

_RANK = 8


def make_adapters(name: str, folder: Path) -> list[Path]:
    """A folder for each client, all different."""
    adapted = get_peft_model(
        make_model(SUBJECTS[name], torch.device("cpu")), LoraConfig(r=_RANK, target_modules="all-linear")
    )
    folders = []
    for number in range(CLIENTS):
        for weight_name, weight in adapted.named_parameters():
            if "lora_" in weight_name:
                torch.nn.init.normal_(weight, std=0.01)
        folders.append(folder / f"adapter-{number}")
        adapted.save_pretrained(str(folders[-1]))
    return folders


async def pauses(sides: Sides, folder: Path) -> dict[str, float]:
    """Seconds of steps while adapters come, from when all clients have a token.

    The first adapter that comes finds all places of the bank taken, which grows for it.
    """
    # As replicas do: a search of all memory is none of what an adapter costs.
    tidy_memory()
    worker, ends, first_tokens = sides.engine._worker, list[float](), asyncio.Semaphore(0)
    step = worker._step

    def timed() -> None:
        step()
        ends.append(time.perf_counter())

    worker._step = timed  # type: ignore[method-assign]
    adapters = [f"adapter-{number}" for number in range(CLIENTS)]
    answers = asyncio.create_task(sides.ours(CLIENTS, adapters, on_first_token=first_tokens.release))
    for _ in range(CLIENTS):
        await first_tokens.acquire()
    # The step that ends now has read prompts.
    ends.clear()
    while not answers.done():
        await sides.engine.attach_adapter("another", folder)
        await asyncio.sleep(0.05)
    await answers
    worker._step = step  # type: ignore[method-assign]
    gaps = [after - before for before, after in pairwise(ends)]
    median, longest = statistics.median(gaps), max(gaps)
    return {"median_seconds": median, "longest_seconds": longest, "longest_over_median": longest / median}


def pauses_of_a_full_bank(name: str, device: torch.device, folders: Sequence[Path]) -> dict[str, float]:
    """`pauses` of an engine of its own, in which each client has an adapter."""
    sides = Sides(SUBJECTS[name], device)

    async def run() -> dict[str, float]:
        await sides.engine.start()
        for adapter in folders:
            await sides.engine.attach_adapter(adapter.name, adapter)
        await sides.ours(CLIENTS, [adapter.name for adapter in folders])
        found = await pauses(sides, folders[1])
        await sides.engine.stop()
        return found

    return asyncio.run(run())


def measure(name: str, device: torch.device, *, rounds: int) -> dict[str, Any]:
    """All figures of one model."""
    sides, loop = Sides(SUBJECTS[name], device), asyncio.new_event_loop()
    loop.run_until_complete(sides.engine.start())
    with tempfile.TemporaryDirectory() as folder:
        folders = make_adapters(name, Path(folder))
        for adapter in folders:
            loop.run_until_complete(sides.engine.attach_adapter(adapter.name, adapter))
        wanted: dict[str, list[str | None]] = {
            "none": [None] * CLIENTS,
            "one": [folders[0].name] * CLIENTS,
            "all": [adapter.name for adapter in folders],
        }

        def block(adapters: list[str | None]) -> Callable[[int], float]:
            return lambda clients: loop.run_until_complete(sides.ours(clients, adapters))

        seconds = take_turns({side: block(adapters) for side, adapters in wanted.items()}, rounds, CLIENTS)
        loop.run_until_complete(sides.engine.stop())
        steps = [pauses_of_a_full_bank(name, device, folders) for _ in range(rounds)]
    num_tokens = CLIENTS * SUBJECTS[name].new_tokens
    return {
        "tokens_per_second": {side: spread([num_tokens / one for one in took], 1) for side, took in seconds.items()},
        "all_over": {side: spread(ratios(seconds[side], seconds["all"]), 3) for side in ("one", "none")},
        "steps_while_adapters_are_attached": {figure: spread([one[figure] for one in steps], 4) for figure in steps[0]},
    }


def main() -> int:
    """Measure, write the record, and say whether the bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", nargs="+", choices=sorted(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-record", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    figures = {name: measure(name, device, rounds=arguments.rounds) for name in arguments.model}
    kept = tell_measured(serving_table.ROWS, "serve_adapters", figures)
    if not arguments.no_record:
        settings = {"clients": CLIENTS, "prompt_tokens": PROMPT_TOKENS, "rank": _RANK, "rounds": arguments.rounds}
        sys.stdout.write(f"{write_record('serve_adapters', device, settings, figures)}\n")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
