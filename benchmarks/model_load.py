"""From a model's files to an engine that answers: seconds, and what the host's memory holds meanwhile.

A llama of about 90 million random weights, in bf16 and in several files, is loaded in processes of its own: by
transformers alone, on the CPU and then moved where it is to be, and by us. Memory is what the process takes beyond its
imports, over the size of the model where it computes. What the cache adds to a download is timed, and what it takes to
find a model there; and the engine's first answers, with and without warming up.

    python benchmarks/model_load.py [--device cuda] [--model small base] [--rounds 5]
"""

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from plinth_workloads.models.load import load_for_inference
from plinth_workloads.models.model_cache import Download, ModelCache
from plinth_workloads.serving.engine import GenerationRequest, SamplingParameters, StructuredOutput
from plinth_workloads.serving.torch_engine import TorchEngine
from record import spread, write_record
from serve_engine import SUBJECTS, make_model

_SHARD = "40MB"
_LOOK_SECONDS = 0.002
_LATER = 5
_SCHEMA = '{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}'


def make_tokenizer(vocab_size: int) -> Any:
    """Every byte is a token, so that JSON can be written; the others are words, which cost as much as learned ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"w{number}" for number in range(vocab_size - len(alphabet) - 1)]
    vocab = {word: number for number, word in enumerate([*alphabet, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def plain(folder: Path, device: str) -> Any:
    """As it is done without us."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)


def ours(folder: Path, device: str) -> Any:
    """As a replica does it."""
    return load_for_inference(f"file://{folder}", tracking_uri="", cache_dir=folder, device=device)[0]


LOADS: dict[str, Callable[[Path, str], Any]] = {"plain": plain, "ours": ours}


def loaded(side: str, folder: Path, device: str) -> dict[str, float]:
    """One load in this process: seconds, and the most of the host's memory that it took."""
    torch.empty(1, device=device)
    before, most, ended = _held_bytes(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(_LOOK_SECONDS):
            most[0] = max(most[0], _held_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    model = LOADS[side](folder, device)
    seconds = time.perf_counter() - began
    ended.set()
    watcher.join()
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return {"seconds": seconds, "peak_of_size": (max(most[0], _held_bytes()) - before) / size}


def _held_bytes() -> int:
    """Memory of this process that is no file's: pages of files are the kernel's to take back."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("RssAnon is told by Linux only")


def answered(folder: Path, device: str, *, warm: bool) -> dict[str, list[float]]:
    """Seconds to the first token of each way to ask, the first time and later."""

    async def ask() -> dict[str, list[float]]:
        model, tokenizer = load_for_inference(f"file://{folder}", tracking_uri="", cache_dir=folder, device=device)
        engine = TorchEngine(model, tokenizer)
        await engine.start()
        await (engine.warm_up() if warm else engine.check_health())
        found: dict[str, list[float]] = {"long": [], "structured": []}
        generator = torch.Generator().manual_seed(0)
        structure = StructuredOutput("json_schema", _SCHEMA, "response_format")
        for _ in range(1 + _LATER):
            for kind, length in (("long", 400), ("structured", 20)):
                prompt = torch.randint(engine.context_length, (length,), generator=generator).tolist()
                sampling = SamplingParameters(2, structure=structure if kind == "structured" else None)
                began, first = time.perf_counter(), 0.0
                async for _ in engine.generate(GenerationRequest(tuple(prompt), sampling)):
                    first = first or time.perf_counter() - began
                found[kind].append(first)
        await engine.stop()
        return found

    return asyncio.run(ask())


def in_process(*arguments: str) -> Any:
    """What this script says in a process of its own."""
    answer = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


def fetched(folder: Path, scratch: Path) -> dict[str, float]:
    """Seconds until a model is in the cache, less the copying, and until it is found there."""
    copying = 0.0

    def into(place: Path) -> Path:
        nonlocal copying
        began = time.perf_counter()
        shutil.copytree(folder, place / "files")
        copying = time.perf_counter() - began
        return place / "files"

    cache = ModelCache(scratch)
    began = time.perf_counter()
    cache.add("models:/m/1", Download("models:/m/1", "a folder", into))
    added = time.perf_counter() - began
    began = time.perf_counter()
    cache.known("models:/m/1")
    return {"checked_and_hashed": added - copying, "known": time.perf_counter() - began}


def measure(name: str, device: str, rounds: int) -> dict[str, Any]:
    """All figures of one model."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        model = make_model(SUBJECTS[name], torch.device("cpu")).to(torch.bfloat16)
        model.save_pretrained(folder, max_shard_size=_SHARD)
        make_tokenizer(SUBJECTS[name].config["vocab_size"]).save_pretrained(folder)
        file_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        loads: dict[str, list[dict[str, float]]] = {side: [] for side in LOADS}
        cache: list[dict[str, float]] = []
        for turn in range(rounds):
            for side in sorted(LOADS, reverse=bool(turn % 2)):
                loads[side].append(in_process("--child", side, "--folder", str(folder), "--device", device))
            cache.append(fetched(folder, Path(scratch) / f"cache-{turn}"))
        first = {
            state: in_process("--child", state, "--folder", str(folder), "--device", device)
            for state in ("cold", "warm")
        }
    return {
        "file_bytes": file_bytes,
        **{
            f"load_{side}_{figure}": spread([one[figure] for one in found], digits=3)
            for side, found in loads.items()
            for figure in ("seconds", "peak_of_size")
        },
        **{f"cache_{figure}_seconds": spread([one[figure] for one in cache], digits=4) for figure in cache[0]},
        **{
            f"first_token_{kind}_{state}": {
                "first_seconds": round(seconds[0], 3),
                "later_seconds": spread(seconds[1:], digits=3)["median"],
            }
            for state, kinds in first.items()
            for kind, seconds in kinds.items()
        },
    }


def main() -> int:
    """Measure, print and write the record; or one load, told as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", nargs="+", choices=sorted(SUBJECTS), default=["base"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=[*LOADS, "cold", "warm"])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.child in LOADS:
        _say(json.dumps(loaded(given.child, given.folder, given.device)))
        return 0
    if given.child:
        _say(json.dumps(answered(given.folder, given.device, warm=given.child == "warm")))
        return 0
    figures = {name: measure(name, given.device, given.rounds) for name in given.model}
    _say(json.dumps(figures, indent=2))
    settings = {"rounds": given.rounds, "dtype": "bfloat16", "shard": _SHARD, "later": _LATER}
    _say(str(write_record("model_load", torch.device(given.device), settings, figures)))
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
