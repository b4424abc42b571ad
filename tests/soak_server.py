"""A small model behind uvicorn, in a process of its own: lines of JSON on stdin change it, each is answered by one.

    python -m soak_server FOLDER

FOLDER has the models and adapters that `write_models` puts there. The answer to a line says how much the process holds.
"""

import asyncio
import gc
import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any, cast

import torch
import uvicorn
from peft import LoraConfig, get_peft_model

from plinth_api.run import ServeLimits
from plinth_workloads.models.load import load_for_inference
from plinth_workloads.serving.asgi import build_asgi
from plinth_workloads.serving.replica_memory import tidy_memory
from plinth_workloads.serving.served_model import ServedModel
from plinth_workloads.serving.served_names import ServedNames
from plinth_workloads.serving.torch_engine import TorchEngine
from unit.plinth_workloads.serving.tiny_model import make_model, make_tokenizer, randomize_lora
from unit.plinth_workloads.serving.tools import TOOL_TEMPLATE

NAME = "m"
MODELS = ("first", "second")
"""Two folders with the same weights, so that answers are the same whichever is in service."""
BROKEN = "broken"
ADAPTERS = ("docs", "tests")
MAX_BATCH, MAX_WAITING = 8, 56
KEEP_ALIVE_SECONDS = 90
"""As Ray Serve's proxy; with uvicorn's own 5 a client may write into a connection that is being closed."""
LIMITS = ServeLimits(max_body_bytes=64 * 1024, max_output_tokens=100, request_timeout_seconds=120)


def write_models(folder: Path) -> None:
    """The models, one whose weights are cut off, and two adapters."""
    for name in MODELS:
        make_model().save_pretrained(folder / name)
        make_tokenizer(chat_template=TOOL_TEMPLATE).save_pretrained(folder / name)
    shutil.copytree(folder / MODELS[0], folder / BROKEN)
    weights = folder / BROKEN / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    for seed, name in enumerate(ADAPTERS):
        adapted = get_peft_model(make_model(), LoraConfig(r=4, lora_alpha=16, target_modules="all-linear"))
        randomize_lora(adapted, seed=seed)
        adapted.save_pretrained(folder / name)


async def serve(folder: Path) -> None:
    """Answer until the end of stdin."""

    def engine(uri: str) -> TorchEngine:
        model, tokenizer = load_for_inference(uri, tracking_uri="", cache_dir=folder / "cache")
        return TorchEngine(model, tokenizer, max_batch_size=MAX_BATCH, max_waiting=MAX_WAITING)

    served = ServedModel(engine, fetch_adapter=lambda uri, _: Path(uri.removeprefix("file://")), tidy=tidy_memory)
    served.limits = LIMITS
    served.set_target(f"file://{folder / MODELS[0]}")
    await served.wait_loaded()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(
        build_asgi(served, ServedNames(NAME)),
        log_level="critical",
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    _say({"port": listener.getsockname()[1]})
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        command = json.loads(line)
        if "adapters" in command:
            served.set_adapters({name: f"file://{folder / at}" for name, at in command["adapters"].items()})
        if "model" in command:
            served.set_target(f"file://{folder / command['model']}")
            await served.wait_loaded()
        _say(_held(served))
    server.should_exit = True
    await running
    await served.close()


def _held(served: ServedModel) -> dict[str, Any]:
    gc.collect()
    engine = cast(TorchEngine, served.engine)
    slots = cast(Any, engine._batch)
    return {
        "tasks": len(asyncio.all_tasks()),
        "prefix_blocks": len(slots._prefixes._slots),
        "slots": len(slots._rows),
        "clients": len(engine._places._taken),
        "load_error": served.load_error,
        "model": Path(served.uri or "").name,
    }


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    asyncio.run(serve(Path(sys.argv[1])))
