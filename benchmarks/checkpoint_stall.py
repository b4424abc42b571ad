"""How long a checkpoint holds training up, and what it costs beside: a llama of 60M parameters, alone in one process.

Each turn trains a few steps in quiet, saves and waits, then saves and trains on until the checkpoint is complete. The
stall is the time in `Checkpointer.save`; the steps beside a save share cores and memory with it, so what they take
longer than quiet ones is part of its cost. Exits with 1 where the median stall is not under a step.

    python benchmarks/checkpoint_stall.py [--size small] [--turns 7] [--rows 4]
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plinth_workloads.train.checkpoint import Checkpointer
from plinth_workloads.train.parallel import Workers
from record import spread, write_record

SIZES = {
    "60m": {"hidden_size": 640, "num_hidden_layers": 8, "num_attention_heads": 10, "intermediate_size": 1728},
    "small": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 160},
}
_VOCAB = {"60m": 16384, "small": 512}
_LENGTH = 256
_QUIET_STEPS = 3


@dataclass(slots=True)
class _Seconds:
    """What was measured, in seconds."""

    quiet_step: list[float] = field(default_factory=list)
    step_beside_a_save: list[float] = field(default_factory=list)
    synchronous_save: list[float] = field(default_factory=list)
    stall: list[float] = field(default_factory=list)
    background_save: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)


def main() -> int:
    """Measure, and write the result unless the model is a small one; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="60m", help="a small model is a trial, and not recorded")
    parser.add_argument("--turns", type=int, default=7, help="saves of each way, at least 2")
    parser.add_argument("--rows", type=int, default=4, help="rows of a step")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _build_model(arguments.size).to(device)
    with tempfile.TemporaryDirectory() as folder:
        measured, size_bytes = _measure(model, device, arguments.turns, arguments.rows, Path(folder))
    figures = _figures(model, measured, size_bytes)
    sys.stdout.write(
        f"stall {figures['stall_seconds']['median']:.3f} s, {figures['stall_share_of_a_step']:.0%} of a step of "
        f"{figures['quiet_step_seconds']['median']:.3f} s; waiting for the save takes "
        f"{figures['synchronous_save_seconds']['median']:.3f} s; saving beside training costs "
        f"{figures['cost_seconds']['median']:.3f} s, {figures['cost_share_of_synchronous']:.0%} of that\n"
    )
    if arguments.size == "60m":
        settings = {
            "config": {**SIZES[arguments.size], "vocab_size": _VOCAB[arguments.size]},
            "optimizer": "AdamW",
            "rows_a_step": arguments.rows,
            "sequence_length": _LENGTH,
            "turns": arguments.turns,
            "storage": "the machine's temporary folder",
        }
        sys.stdout.write(f"written to {write_record('checkpoint_stall', device, settings, figures)}\n")
    return 0 if figures["stall_share_of_a_step"] < 1 else 1


def _build_model(size: str) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("llama", **SIZES[size], vocab_size=_VOCAB[size])
    return transformers.AutoModelForCausalLM.from_config(config)


def _measure(model: Any, device: torch.device, turns: int, rows: int, folder: Path) -> tuple[_Seconds, int]:
    """Everything in seconds, and the bytes of a checkpoint."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    checkpointer = Checkpointer(folder, 1, Workers(0, 1, device, control_group=None))
    ids = torch.randint(model.config.vocab_size, (rows, _LENGTH), device=device)

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    seconds, saves = _Seconds(), 0
    # The first turn makes the buffers and is not counted.
    for turn in range(-1, turns):
        seconds = _Seconds() if turn == 0 else seconds
        quiet = [_timed(step) for _ in range(_QUIET_STEPS)]
        seconds.quiet_step += quiet
        began = time.perf_counter()
        checkpointer.save(saves + 1, model, [optimizer], {})
        list(checkpointer.saved(wait=True))
        seconds.synchronous_save.append(time.perf_counter() - began)
        checkpointer.save(saves + 2, model, [optimizer], {})
        saves += 2
        beside: list[float] = []
        while not (saved := list(checkpointer.saved())):
            beside.append(_timed(step))
        seconds.step_beside_a_save += beside
        seconds.stall.append(saved[0].stall_seconds)
        seconds.background_save.append(saved[0].seconds)
        seconds.cost.append(saved[0].stall_seconds + sum(beside) - len(beside) * statistics.median(quiet))
    return seconds, sum(path.stat().st_size for path in folder.glob("step-*/*"))


def _timed(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _figures(model: nn.Module, seconds: _Seconds, size_bytes: int) -> dict[str, Any]:
    quiet = statistics.median(seconds.quiet_step)
    synchronous = statistics.median(seconds.synchronous_save)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "checkpoint_bytes": size_bytes,
        "quiet_step_seconds": spread(seconds.quiet_step),
        "step_beside_a_save_seconds": spread(seconds.step_beside_a_save),
        "synchronous_save_seconds": spread(seconds.synchronous_save),
        "background_save_seconds": spread(seconds.background_save),
        "stall_seconds": spread(seconds.stall),
        "stall_share_of_a_step": round(statistics.median(seconds.stall) / quiet, 4),
        "stall_share_of_synchronous": round(statistics.median(seconds.stall) / synchronous, 4),
        "cost_seconds": spread(seconds.cost),
        "cost_share_of_synchronous": round(statistics.median(seconds.cost) / synchronous, 4),
    }


if __name__ == "__main__":
    sys.exit(main())
