"""Tuning a llama with LoRA on a CPU, on documents of mixed length: ours beside TRL's SFTTrainer.

Every side tunes the same random weights with the same adapter on the functions of the standard library, whole ones and
on average as many tokens a step; `trl` pads the documents of a batch to the longest, `trl_packed` packs them as ours
does. Each side is a process of its own, so that its peak of memory is its own; they take turns in blocks of steps, and
figures are ratios of blocks of one round. A CPU has none of the kernels by which TRL keeps packed documents apart: its
attention there runs over whole rows.

    python benchmarks/tune_peers.py [--rounds 6] [--steps 5] [--sides ours trl trl_packed]
"""

import ast
import multiprocessing
import resource
import statistics
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from peers import ALONE, CPU, END, LLAMA_VOCABULARY, UNREACHED, Subject, parser, random_llama, run_document, steps_timed
from plinth_api.run import TrainRun
from plinth_workloads.data.loader import BatchLoader
from plinth_workloads.data.recipe import DataRecipe
from plinth_workloads.data.token_store import TokenizedDocument, TokenStore, write_token_store
from plinth_workloads.models.adapters import attach
from plinth_workloads.objectives.causal_lm import CausalLMLoss
from plinth_workloads.train.blocks import prepare_blocks
from plinth_workloads.train.checkpoint import Checkpointer
from plinth_workloads.train.cpu_products import choose_products
from plinth_workloads.train.loop import TrainLoop
from plinth_workloads.train.optim import build_optimizers
from record import spread, write_record
from turns import take_turns

_LORA = {"r": 16, "alpha": 32, "dropout": 0.0}


FULL = Subject(384, 8, 6, 1024, LLAMA_VOCABULARY, 512, 4, 120)
TINY = Subject(32, 2, 2, 64, 512, 64, 2, 10)


@dataclass(frozen=True, slots=True)
class Done:
    """What a side did in a block, and the most memory that it has held so far."""

    seconds: float
    tokens: int
    peak_bytes: int


Block = Callable[[int], tuple[float, int]]
"""Trains so many steps; returns their seconds and the tokens of documents in them."""


def main() -> int:
    """Measure the sides in turns, print a table and, unless it was a try, write one record; the exit code."""
    arguments = parser(__doc__, tuple(_SIDES)).parse_args()
    subject = TINY if arguments.tiny else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder, subject)
        sides = {side: _Side(side, folder, subject) for side in arguments.sides}
        done = take_turns(sides, arguments.rounds, arguments.steps)
        for side in sides.values():
            side.end()
    figures = {side: _figures(done, side, arguments.steps) for side in arguments.sides}
    sys.stdout.write(_table(figures))
    if not arguments.tiny:
        settings = {**asdict(subject), "steps_a_block": arguments.steps, "rounds": arguments.rounds, "lora": _LORA}
        packages = ("torch", "transformers", "peft", "trl", "accelerate", "numpy")
        path = write_record("tune_peers", CPU, settings, figures, packages=packages, has_own_load=True)
        sys.stdout.write(f"written to {path}\n")
    return 0


def _prepare(folder: Path, subject: Subject) -> None:
    """The functions of the standard library as tokens of a vocabulary that is trained on it."""
    from tokenizers import ByteLevelBPETokenizer

    texts = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[: subject.files]:
        source = path.read_text(encoding="utf-8", errors="ignore")
        functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
        texts += [text for node in functions if (text := ast.get_source_segment(source, node))]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, subject.vocab_size, special_tokens=["<end>"], show_progress=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    documents = [TokenizedDocument([*tokenizer.encode(text).ids, END][: subject.sequence_length]) for text in texts]
    write_token_store(folder / "tokens", [documents], subject.vocab_size)


def _documents(store: TokenStore) -> np.ndarray:
    return np.random.default_rng(0).permutation(store.num_documents)


class _Side:
    """One side in a process of its own."""

    def __init__(self, side: str, folder: Path, subject: Subject) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, side, folder, subject))
        self._process.start()

    def __call__(self, steps: int) -> Done:
        """Let it train so many steps."""
        self._pipe.send(steps)
        done: Done = self._pipe.recv()
        return done

    def end(self) -> None:
        """End its process."""
        self._pipe.send(None)
        self._process.join()


def _serve(pipe: Connection, side: str, folder: Path, subject: Subject) -> None:
    """Train as many steps as the pipe says, until it says None."""
    warnings.filterwarnings("ignore")
    block = _SIDES[side](folder, subject)
    while (steps := pipe.recv()) is not None:
        seconds, tokens = block(steps)
        pipe.send(Done(seconds, tokens, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def _tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<end>", pad_token="<end>", bos_token="<end>"
    )


def _run_document(folder: Path, subject: Subject) -> TrainRun:
    spec = {"model": {"uri": "file:///unread"}, "task": {"completion": {}}, "method": {"lora": _LORA}}
    return run_document(folder, subject, "FineTuneJob", spec, packing=True)


def _ours(folder: Path, subject: Subject) -> Block:
    run, store, tokenizer = _run_document(folder, subject), TokenStore(folder / "tokens"), _tokenizer(folder)
    recipe, documents = DataRecipe(run), _documents(store)
    plan = recipe.plan(documents, store, seed=0)
    rows = subject.rows_a_step
    loader = BatchLoader(
        recipe.batcher(tokenizer, store, documents), lambda epoch: plan, global_batch_size=rows, micro_batch_size=rows
    )
    model = attach(random_llama(subject), run.method, tokenizer, "file:///unread", subject.sequence_length)
    loss = CausalLMLoss(model).train()
    choose_products(model, run)
    prepare_blocks(model, run, same_width=False)
    loop = TrainLoop(
        run,
        workers=ALONE,
        model=model,
        loss=loss,
        optimizers=build_optimizers(model, run.training),
        loader=loader,
        checkpointer=Checkpointer(folder / "checkpoints", 1, ALONE),
        evaluate=None,
        num_steps=UNREACHED,
        fingerprint=store.fingerprint,
    )

    def block(steps: int) -> tuple[float, int]:
        before, started = loop.state.tokens, time.perf_counter()
        for _ in range(steps):
            loop.train_step()
        return time.perf_counter() - started, loop.state.tokens - before

    return block


def _trl(folder: Path, subject: Subject, *, packing: bool = False) -> Block:
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import PrinterCallback
    from transformers.utils import logging
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    logging.set_verbosity_error()
    store = TokenStore(folder / "tokens")
    texts = [store.tokens[(at := int(store.offsets[n])) : at + int(store.lengths[n])] for n in _documents(store)]
    mean = float(np.mean(store.lengths))
    whole = subject.rows_a_step * subject.sequence_length
    arguments = {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": subject.rows_a_step if packing else round(whole / mean),
        "max_length": subject.sequence_length,
        "packing": packing,
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    lora = LoraConfig(
        r=_LORA["r"], lora_alpha=_LORA["alpha"], lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    data, model = Dataset.from_dict({"input_ids": [text.tolist() for text in texts]}), random_llama(subject)

    def block(steps: int) -> tuple[float, int]:
        times, counts = steps_timed(), []
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(max_steps=steps + 1, **arguments),
            train_dataset=data,
            processing_class=_tokenizer(folder),
            peft_config=lora,
            callbacks=[times],
        )
        collate = trainer.data_collator

        def counting(examples: Any) -> Any:
            batch = collate(examples)
            counts.append(sum(len(example["input_ids"]) for example in examples))
            return batch

        trainer.data_collator = counting
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.model.unload()
        return times.seconds, sum(counts[1 : steps + 1])

    return block


def _trl_packed(folder: Path, subject: Subject) -> Block:
    return _trl(folder, subject, packing=True)


_SIDES: Mapping[str, Callable[[Path, Subject], Block]] = {"ours": _ours, "trl": _trl, "trl_packed": _trl_packed}


def _figures(done: Mapping[str, Sequence[Done]], side: str, steps: int) -> dict[str, Any]:
    """Tokens a second and memory of one side, and by how much ours is faster, round by round."""
    speeds = {name: [block.tokens / block.seconds for block in blocks] for name, blocks in done.items()}
    ratios = {}
    if "ours" in done and side != "ours":
        pairs = zip(speeds["ours"], speeds[side], strict=True)
        ratios = {"ours_over_it": spread([ours / theirs for ours, theirs in pairs])}
    return {
        "tokens_per_second": round(statistics.median(speeds[side])),
        "tokens_a_step": round(statistics.mean(block.tokens / steps for block in done[side])),
        "peak_bytes": max(block.peak_bytes for block in done[side]),
        **ratios,
    }


def _table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["side         tokens/s   peak MiB   ours / it"]
    for side, measured in figures.items():
        ratio = measured.get("ours_over_it", {}).get("median")
        told = "" if ratio is None else f"{ratio:.2f}"
        lines.append(f"{side:11} {measured['tokens_per_second']:>9} {measured['peak_bytes'] / 2**20:>10.0f} {told:>11}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
