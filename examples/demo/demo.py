"""The main job, end to end: real data, `plinth run` on the three YAML files beside this one, questions to the service.

Exits non-zero if any step fails, the base model does not beat a bigram model of the same tokens, or an answer is empty.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from openai import OpenAI
from rich.console import Console
from rich.table import Table

from plinth_api.run import TrainRun
from plinth_workloads.data.packing import EpochPlan, Segment
from plinth_workloads.data.prepare import PreparedData, plan_training_epoch, plan_validation, prepare_data
from plinth_workloads.data.token_store import IntArray, TokenStore
from plinth_workloads.local import Home
from plinth_workloads.manifests import load_manifests
from plinth_workloads.train.progress import read_progress

FOLDER = Path(__file__).resolve().parent
FILES = [FOLDER / name for name in ("pretrain.yaml", "finetune.yaml", "service.yaml")]
READY = "ready at "
QUESTION = "Write a docstring for this Python code.\n\ndef read_lines(path, encoding='utf-8'):"

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Run the demo; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=lambda text: Path(text).resolve(), default=Path(".plinth").resolve())
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--keep", action="store_true", help="leave the service up until Ctrl-C")
    arguments = parser.parse_args()
    started = time.monotonic()
    _heading("1. Real data: the standard library's own source")
    corpora = arguments.home / "volumes" / "corpora"
    subprocess.run([sys.executable, str(FOLDER / "prepare.py"), "--output", str(corpora)], check=True)
    _heading("2. plinth run pretrain.yaml finetune.yaml service.yaml")
    with _plinth_run(arguments.home, arguments.port) as process:
        try:
            url = _wait_until_ready(process)
            if url is None:
                return process.wait() or 1
            _heading("3. Is it any good? Validation perplexity beside n-gram models of the same tokens")
            beaten = _compare_with_ngrams(_run_document(arguments.home, FILES[0]))
            _heading(f"4. Ask it, with the openai client, at {url}/v1")
            answered = _ask(url)
            _say_where_to_look(arguments.home, url, time.monotonic() - started)
            if arguments.keep:
                _stay_up(process, url)
        except KeyboardInterrupt:
            return 0 if arguments.keep else 1
        finally:
            _stop(process)
    return 0 if beaten and answered else 1


def _plinth_run(home: Path, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "plinth_workloads.cli", "run", *map(str, FILES)]
    return subprocess.Popen(
        [*command, "--home", str(home), "--port", str(port)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def _wait_until_ready(process: subprocess.Popen[str]) -> str | None:
    assert process.stdout is not None
    for line in process.stdout:
        console.print(line.rstrip(), markup=False)
        if READY in line:
            return line.split(READY, 1)[1].strip()
    return None


def _stay_up(process: subprocess.Popen[str], url: str) -> None:
    console.print(f"Chat with it in a browser, until Ctrl-C: {url}/", style="bold")
    process.wait()


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _run_document(home: Path, file: Path) -> TrainRun:
    resource = load_manifests([file])[0].resource
    settings = Home(home).settings(resource)
    return TrainRun.model_validate_json((Path(settings.work_dir) / "run.json").read_text())


def _compare_with_ngrams(run: TrainRun) -> bool:
    data = prepare_data(run, None)
    measured = [event for event, _ in read_progress(Path(run.work_dir)) if event["event"] == "model"][-1]
    perplexity = measured["metrics"]["perplexity"]
    consumed = _consumed_segments(run, data)
    assert data.validation_store is not None
    plan = plan_validation(data)
    held_out = [_tokens(data.validation_store, segment) for segment in _segments(plan, plan.num_rows)]
    ngrams = _ngram_baseline().ngram_perplexities(consumed, held_out, len(data.tokenizer))
    table = Table()
    table.add_column("model")
    table.add_column("perplexity", justify="right")
    for name, value in {**ngrams, "pycode-base": perplexity}.items():
        table.add_row(name, f"{value:.1f}")
    console.print(table)
    console.print(f"All have seen the same {sum(map(len, consumed)):,} tokens; n-grams are interpolated Kneser-Ney.")
    beaten: bool = perplexity < ngrams["bigram"]
    console.print("pycode-base beats the bigram model." if beaten else "pycode-base does NOT beat the bigram model.")
    return beaten


def _consumed_segments(run: TrainRun, data: PreparedData) -> list[IntArray]:
    """Every document piece that the run's steps have read, in order."""
    assert run.training.steps is not None
    left, epoch = run.training.steps * run.training.global_batch_size, 0
    pieces: list[IntArray] = []
    while left:
        plan = plan_training_epoch(run, data, epoch)
        rows = min(left, plan.num_rows)
        pieces += [_tokens(data.store, segment) for segment in _segments(plan, rows)]
        left, epoch = left - rows, epoch + 1
    return pieces


def _segments(plan: EpochPlan, rows: int) -> Iterator[Segment]:
    for index in range(rows):
        yield from plan.row(index)


def _tokens(store: TokenStore, segment: Segment) -> IntArray:
    offset = int(store.offsets[segment.document])
    return np.asarray(store.tokens[offset + segment.start : offset + segment.stop], np.int64)


def _ngram_baseline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ngram_baseline", FOLDER / "ngram_baseline.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _ask(url: str) -> bool:
    client = OpenAI(base_url=f"{url}/v1", api_key="local", max_retries=0, timeout=120)
    model = client.models.list().data[0].id
    prompt = "import os\n\ndef main():\n    "
    completion = client.completions.create(model=model, prompt=prompt, max_tokens=48, temperature=0.7, seed=1)
    text = completion.choices[0].text
    console.print("completion:", style="bold")
    console.print(prompt + text, markup=False)
    console.print("streamed chat:", style="bold")
    console.print(QUESTION, style="dim", markup=False)
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=64,
        temperature=0.3,
        seed=1,
        stream=True,
    )
    pieces = []
    for chunk in stream:
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece:
            pieces.append(piece)
            console.print(piece, end="", markup=False)
    console.print()
    return bool(text.strip()) and bool("".join(pieces).strip())


def _say_where_to_look(home: Path, url: str, seconds: float) -> None:
    _heading(f"Done in {seconds / 60:.1f} minutes. Where to look")
    plinth = Path(sys.executable).with_name("plinth")
    console.print(
        f"runs, metrics, loss curves, models: {plinth} ui --home {home}, then http://127.0.0.1:5000", markup=False
    )
    console.print(f"the service again: {plinth} serve {FILES[2]} --home {home}, then {url}/v1", markup=False)


def _heading(text: str) -> None:
    console.print(f"\n{text}", style="bold")


if __name__ == "__main__":
    sys.exit(main())
