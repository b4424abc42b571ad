"""Peak memory of the loss of a language model by the size of its vocabulary: in chunks of tokens, and the plain way.

Each figure is of a process of its own: what it holds at most while it computes the loss and its gradients, above what
it held before (weights, hidden states). The gradients, which any way must leave behind, are given beside it and not
counted. Memory does not depend on what else the machine does. Exits with 1 where ours grows with the vocabulary.

    python benchmarks/loss_memory.py [--tokens 2048] [--hidden 128] [--vocabularies 8192 32768 131072 262144]
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from observation import resident_bytes
from plinth_workloads.objectives.chunked_loss import CHUNK_LOGITS, LogitTransform, chunked_cross_entropy
from record import write_record

WAYS = ("ours", "plain")
HEADS = ("trained", "frozen")
MOST_GROWTH = 1.25
"""Largest over smallest peak of ours, over the vocabularies."""

_RESET_PEAK = "5"
"""Written to clear_refs, it sets VmHWM back to VmRSS: proc(5)."""


def main() -> int:
    """Measure every case, print a table and write one record; the exit code."""
    arguments = _parser().parse_args()
    if arguments.case:
        sys.stdout.write(json.dumps(_measure(arguments.case, arguments.tokens, arguments.hidden)))
        return 0
    figures: dict[str, Any] = {}
    for head in HEADS:
        for vocabulary in arguments.vocabularies:
            for way in WAYS:
                name = f"{head}/{vocabulary}/{way}"
                figures.setdefault(head, {}).setdefault(str(vocabulary), {})[way] = _in_a_process(name, arguments)
    sys.stdout.write(_table(figures))
    growth = {head: _growth(by_vocabulary) for head, by_vocabulary in figures.items()}
    settings = {
        "tokens": arguments.tokens,
        "hidden": arguments.hidden,
        "precision": "fp32",
        "chunk_logits": CHUNK_LOGITS["cpu"],
        "most_growth": MOST_GROWTH,
    }
    path = write_record(
        "loss_memory", torch.device("cpu"), settings, {**figures, "growth_of_ours_over_vocabularies": growth}
    )
    sys.stdout.write(f"written to {path}\n")
    return int(max(growth.values()) > MOST_GROWTH)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of one pass")
    parser.add_argument("--hidden", type=int, default=128, help="width of the hidden states")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[8192, 32768, 131072, 262144])
    parser.add_argument("--case", help="measure HEAD/VOCABULARY/WAY in this process and print the figures")
    return parser


def _in_a_process(case: str, arguments: argparse.Namespace) -> dict[str, int]:
    command = [sys.executable, str(Path(__file__)), "--case", case]
    sizes = ["--tokens", str(arguments.tokens), "--hidden", str(arguments.hidden)]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True, check=True)
    measured: dict[str, int] = json.loads(done.stdout)
    return measured


def _measure(case: str, num_tokens: int, hidden: int) -> dict[str, int]:
    """The most that the process held above its start and its gradients, and the bytes of the gradients."""
    kind, vocabulary, way = case.split("/")
    head = nn.Linear(hidden, int(vocabulary), bias=False)
    head.weight.requires_grad_(kind == "trained")
    hidden_BTH = torch.randn(1, num_tokens, hidden, requires_grad=True)
    labels_BT = torch.randint(0, int(vocabulary), (1, num_tokens))
    # Threads and kernels are there before the measurement begins.
    small = nn.Linear(hidden, 64, bias=False)
    _loss(way, hidden_BTH[:, :8], small, labels_BT[:, :8] % 64).backward()
    hidden_BTH.grad = None
    before = resident_bytes(os.getpid())
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    _loss(way, hidden_BTH, head, labels_BT).backward()
    peak = resident_bytes(os.getpid(), "VmHWM")
    gradients = sum(tensor.grad.nbytes for tensor in (hidden_BTH, head.weight) if tensor.grad is not None)
    return {"peak_bytes": peak - before - gradients, "gradient_bytes": gradients}


def _loss(way: str, hidden_BTH: Tensor, head: nn.Linear, labels_BT: Tensor) -> Any:
    if way == "ours":
        return chunked_cross_entropy(hidden_BTH, head, labels_BT, LogitTransform())
    return F.cross_entropy(head(hidden_BTH).float().flatten(0, 1), labels_BT.flatten(), reduction="sum")


def _growth(by_vocabulary: Mapping[str, Mapping[str, Mapping[str, int]]]) -> float:
    peaks = [ways["ours"]["peak_bytes"] for ways in by_vocabulary.values()]
    return round(max(peaks) / min(peaks), 3)


def _table(figures: Mapping[str, Mapping[str, Mapping[str, Mapping[str, int]]]]) -> str:
    lines = ["head     vocabulary   ours MiB  plain MiB   ratio"]
    for head, by_vocabulary in figures.items():
        for vocabulary, ways in by_vocabulary.items():
            ours, plain = (ways[way]["peak_bytes"] / 2**20 for way in WAYS)
            lines.append(f"{head:8} {vocabulary:>10} {ours:10.0f} {plain:10.0f} {plain / ours:7.1f}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
