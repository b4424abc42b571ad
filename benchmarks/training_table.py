"""One table of what training reaches: ours, the peer or the bound, their ratio, and what it must be.

Reads the records of the other benchmarks; `make bench-train` measures them and prints it last. Exits with 1 where a
limit is not kept.

    python benchmarks/training_table.py [--device cpu]
"""

import sys
from collections.abc import Mapping

from comparison import Figures, Reading, Row, main


def _speed(ours: str, peer: str) -> Reading:
    def read(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
        mine, theirs = figures[ours]["tokens_per_second"], figures[peer]["tokens_per_second"]
        return f"{mine:,} tokens/s", f"{theirs:,} tokens/s", figures[peer][f"{ours}_over_it"]

    return read


def _memory(peer: str) -> Reading:
    def read(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
        mine, theirs = figures["ours"]["peak_bytes"], figures[peer]["peak_bytes"]
        return f"{mine / 2**20:,.0f} MiB", f"{theirs / 2**20:,.0f} MiB", {"median": mine / theirs}

    return read


def _overhead(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
    share = figures["overhead_share_wall"]
    ratio = {name: 1 + share[name] for name in ("median", "median_low", "median_high")}
    return f"{figures['step_seconds']:.3f} s a step", f"{figures['bare_step_seconds']:.3f} s a step", ratio


def _ray(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
    cost, ours, bare = (figures[name] for name in ("cost_share", "step_seconds", "bare_step_seconds"))
    ratio = {name: 1 + cost[name] for name in ("median", "median_low", "median_high")}
    return f"{ours['median']:.3f} s a step", f"{bare['median']:.3f} s a step", ratio


def _stall(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
    stall, step = figures["stall_seconds"]["median"], figures["quiet_step_seconds"]["median"]
    return f"{stall:.3f} s", f"{step:.3f} s", {"median": figures["stall_share_of_a_step"]}


def _loss_memory(figures: Figures) -> tuple[str, str, Mapping[str, float]]:
    peaks = [sizes["ours"]["peak_bytes"] / 2**20 for sizes in figures["trained"].values()]
    growth = max(figures["growth_of_ours_over_vocabularies"].values())
    return f"{peaks[-1]:.0f} MiB", f"{peaks[0]:.0f} MiB", {"median": growth}


ROWS = (
    Row("train_peers", "pretraining: Trainer, its defaults", _speed("ours", "trainer"), 1.2),
    Row("train_peers", "pretraining, compiled: Trainer, its defaults", _speed("ours_compiled", "trainer"), 1.2),
    Row("train_peers", "pretraining, compiled: Trainer at its best", _speed("ours_compiled", "trainer_best"), 1.0),
    Row("train_peers", "pretraining: bound, a bare loop over our model", _speed("ours", "bare"), 0.9),
    Row("train_peers_bf16", "the same in bf16: Trainer, its defaults", _speed("ours", "trainer"), 1.2),
    Row("train_peers_bf16", "in bf16, compiled: Trainer, its defaults", _speed("ours_compiled", "trainer"), 1.2),
    Row("train_peers_bf16", "in bf16, compiled: Trainer at its best", _speed("ours_compiled", "trainer_best"), 1.0),
    Row("train_peers_bf16", "in bf16: bound, a bare loop over our model", _speed("ours", "bare"), 0.9),
    Row("tune_peers", "LoRA: TRL without packing", _speed("ours", "trl"), 2.0),
    Row("tune_peers", "LoRA: TRL with packing", _speed("ours", "trl_packed"), 1.1),
    Row("tune_peers", "LoRA, peak memory: TRL without packing", _memory("trl"), 1.0, at_least=False),
    Row("tune_peers", "LoRA, peak memory: TRL with packing", _memory("trl_packed"), 1.0, at_least=False),
    Row("train_overhead", "the loop, its checkpoints: a bare loop", _overhead, 1.03, at_least=False),
    Row("train_overhead_mlflow", "the same, tracked in MLflow: a bare loop", _overhead, 1.03, at_least=False),
    Row("ray_overhead", "Ray Train, MLflow, checkpoints: torchrun, a bare loop", _ray, 1.03, at_least=False),
    Row("checkpoint_stall", "stall of a checkpoint: one step", _stall, 1.0, at_least=False),
    Row("loss_memory", "memory of the loss, 256k tokens: 8k", _loss_memory, 1.05, at_least=False),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, ROWS))
