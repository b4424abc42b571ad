"""Pretraining a llama of tens of millions of weights on a CPU: ours beside Hugging Face's Trainer and the bare loop.

Every side trains the same model from the same weights on the same rows of the standard library's source, in one
process and in turns: a round is a block of steps of each side, the order rotates, and figures are ratios of blocks of
one round. `bare` is forward, backward, clipping and step over our model and kernels with its batches ready: the bound
of our loop. Trainer gets its rows as `run_clm.py` makes them: documents run into each other, attention does not stop
between them, which is less work than ours does. Trainer needs `accelerate`.

In bf16 all of them compute under autocast, in fp32 ours and Trainer at its best take the products of matrices that
`choose_products` finds.

    python benchmarks/train_peers.py [--precision bf16] [--rounds 6] [--steps 5] [--sides ours bare trainer ...]
"""

import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peers import ALONE, CPU, END, LLAMA_VOCABULARY, UNREACHED, Subject, parser, random_llama, run_document, steps_timed
from plinth_api.run import TrainRun
from plinth_workloads.data.loader import BatchLoader, Rows
from plinth_workloads.data.packing import ConcatenatedRows, shuffled_documents
from plinth_workloads.data.token_store import TokenizedDocument, TokenStore, write_token_store
from plinth_workloads.objectives.causal_lm import CausalLMLoss
from plinth_workloads.train.blocks import prepare_blocks
from plinth_workloads.train.checkpoint import Checkpointer
from plinth_workloads.train.cpu_products import choose_products
from plinth_workloads.train.loop import TrainLoop
from plinth_workloads.train.optim import build_optimizers
from plinth_workloads.train.parallel import autocast
from record import spread, write_record
from turns import ratios, take_turns

_BEST = {
    "torch_compile": True,
    "optim": "adamw_torch_fused",
    "logging_strategy": "no",
    "save_strategy": "no",
    "dataloader_pin_memory": False,
}
"""Settings of Trainer that were found to be the fastest here; everything else is its default."""

Block = Callable[[int], float]
"""Trains so many steps; returns the seconds that they took."""


FULL = Subject(384, 8, 6, 1024, LLAMA_VOCABULARY, 512, 8, 600)
TINY = Subject(32, 2, 2, 64, 512, 64, 2, 20)


@dataclass(frozen=True, slots=True)
class Data:
    """The rows, as ours reads them and as Trainer does."""

    store: TokenStore
    plan: ConcatenatedRows
    rows: Rows

    def as_examples(self) -> list[dict[str, Tensor]]:
        """Every row with its own tokens as labels, which transformers shifts."""
        made = (self.rows.batch([list(self.plan.row(index))]) for index in range(self.plan.num_rows))
        rows = [batch.inputs["input_ids_BT"][0] for batch in made]
        return [{"input_ids": row, "labels": row} for row in rows]


def main() -> int:
    """Measure the sides in turns, print a table and, unless it was a try, write one record; the exit code."""
    described = parser(__doc__, tuple(_SIDES))
    described.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    arguments = described.parse_args()
    subject = replace(TINY if arguments.tiny else FULL, precision=arguments.precision)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = _prepare(folder, subject)
        blocks = {side: _SIDES[side](folder / side, subject, data) for side in arguments.sides}
        seconds = take_turns(blocks, arguments.rounds, arguments.steps)
    tokens = arguments.steps * subject.rows_a_step * subject.sequence_length
    figures = {side: _figures(seconds, side, tokens) for side in arguments.sides}
    sys.stdout.write(_table(figures))
    if not arguments.tiny:
        settings = {**asdict(subject), "steps_a_block": arguments.steps, "rounds": arguments.rounds, "best": _BEST}
        packages = ("torch", "transformers", "accelerate", "numpy")
        script = "train_peers" if subject.precision == "fp32" else f"train_peers_{subject.precision}"
        path = write_record(script, CPU, settings, figures, packages=packages)
        sys.stdout.write(f"written to {path}\n")
    return 0


def _prepare(folder: Path, subject: Subject) -> Data:
    """The standard library's source as tokens of a vocabulary that is trained on it, packed."""
    from tokenizers import ByteLevelBPETokenizer

    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[: subject.files]
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in files]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, subject.vocab_size, special_tokens=["<end>"], show_progress=False)
    documents = [TokenizedDocument([*tokenizer.encode(text).ids, END]) for text in texts]
    write_token_store(folder / "tokens", [documents], subject.vocab_size)
    store = TokenStore(folder / "tokens")
    everything = np.arange(store.num_documents)
    drawn = shuffled_documents(everything, [1.0] * len(everything), 0, 0)
    plan = ConcatenatedRows(drawn, store.lengths, subject.sequence_length, seed=0)
    return Data(store, plan, Rows(store, subject.sequence_length, pad_id=END))


def _run_document(folder: Path, subject: Subject, compiled: bool) -> TrainRun:
    spec = {"objective": {"causalLM": {}}, "model": {"architecture": "llama", "tokenizer": {"train": {}}}}
    return run_document(folder, subject, "PretrainJob", spec, compile=compiled)


def _loader(subject: Subject, data: Data) -> BatchLoader:
    rows = subject.rows_a_step
    return BatchLoader(data.rows, lambda epoch: data.plan, global_batch_size=rows, micro_batch_size=rows)


def _prepared(folder: Path, subject: Subject, compiled: bool) -> tuple[TrainRun, Any, nn.Module]:
    run, model = _run_document(folder, subject, compiled), random_llama(subject).train()
    loss = CausalLMLoss(model).train()
    prepare_blocks(model, run, same_width=True)
    return run, model, loss


def _with_products(block: Block, folder: Path, subject: Subject) -> Block:
    """A block whose products are the ones that `choose_products` finds; they hold for the process of all sides."""
    chosen = choose_products(random_llama(subject), _run_document(folder, subject, compiled=False))
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    found, matmul.fp32_precision = matmul.fp32_precision, "none"
    assert chosen == (found != "none")

    def with_products(steps: int) -> float:
        matmul.fp32_precision = found
        try:
            return block(steps)
        finally:
            matmul.fp32_precision = "none"

    return with_products


def _ours(folder: Path, subject: Subject, data: Data, *, compiled: bool = False) -> Block:
    run, model, loss = _prepared(folder, subject, compiled)
    loop = TrainLoop(
        run,
        workers=ALONE,
        model=model,
        loss=loss,
        optimizers=build_optimizers(model, run.training),
        loader=_loader(subject, data),
        checkpointer=Checkpointer(folder / "checkpoints", 1, ALONE),
        evaluate=None,
        num_steps=UNREACHED,
        fingerprint=data.store.fingerprint,
    )

    def block(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            loop.train_step()
        return time.perf_counter() - started

    return _with_products(block, folder, subject)


def _ours_compiled(folder: Path, subject: Subject, data: Data) -> Block:
    return _ours(folder, subject, data, compiled=True)


def _bare(folder: Path, subject: Subject, data: Data) -> Block:
    run, model, loss = _prepared(folder, subject, compiled=False)
    optimizers, loader = build_optimizers(model, run.training), _loader(subject, data)

    def block(steps: int) -> float:
        batches = [batch for _ in range(steps) for batch in loader.next_step()]
        started = time.perf_counter()
        for batch in batches:
            with autocast(run, ALONE):
                value = loss(**batch.inputs) / batch.num_targets
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), run.training.max_grad_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started

    return _with_products(block, folder, subject)


def _trainer(folder: Path, subject: Subject, data: Data, **settings: Any) -> Block:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    model, examples = random_llama(subject).train(), data.as_examples()

    def block(steps: int) -> float:
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=subject.rows_a_step,
            max_steps=steps + 1,
            disable_tqdm=True,
            report_to="none",
            use_cpu=True,
            bf16=subject.precision == "bf16",
            **settings,
        )
        times = steps_timed()
        trainer = Trainer(model=model, args=arguments, train_dataset=examples, callbacks=[times])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        seconds: float = times.seconds
        return seconds

    return block


def _trainer_best(folder: Path, subject: Subject, data: Data) -> Block:
    return _with_products(_trainer(folder, subject, data, **_BEST), folder, subject)


_SIDES: Mapping[str, Callable[[Path, Subject, Data], Block]] = {
    "ours": _ours,
    "bare": _bare,
    "trainer": _trainer,
    "ours_compiled": _ours_compiled,
    "trainer_best": _trainer_best,
}


def _figures(seconds: Mapping[str, Sequence[float]], side: str, tokens: int) -> dict[str, Any]:
    """Tokens a second of one side, and by how much ours and ours compiled are faster, round by round."""
    over_it = {
        f"{ours}_over_it": spread(ratios(seconds[side], seconds[ours]))
        for ours in ("ours", "ours_compiled")
        if ours in seconds and ours != side
    }
    return {"tokens_per_second": round(tokens / statistics.median(seconds[side])), **over_it}


def _table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["side            tokens/s   ours / it   ours compiled / it"]
    for side, measured in figures.items():
        medians = [measured.get(f"{ours}_over_it", {}).get("median") for ours in ("ours", "ours_compiled")]
        told = ["" if median is None else f"{median:.2f}" for median in medians]
        lines.append(f"{side:14} {measured['tokens_per_second']:>9} {told[0]:>11} {told[1]:>20}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
