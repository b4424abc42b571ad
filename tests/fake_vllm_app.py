"""An HTTP application with vLLM's paths, errors and request bodies, without a model: it answers with what it was asked.

One token is one character. The paths are those of vLLM 0.29 (vllm/entrypoints/launchers/api_server/routers.py).
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

CONTEXT_LENGTH = 100


def make_vllm_app(name: str, *, root: str = "/models/m", seconds_a_chunk: float = 0.0) -> FastAPI:
    """The application of an engine; `state.asked` of it has the bodies that reached it, `state.loras` its adapters."""
    app = FastAPI()
    app.state.asked = []
    app.state.loras = {}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        folders = {name: root, **app.state.loras}
        cards = [{"id": one, "root": folder, "process": os.getpid()} for one, folder in folders.items()]
        return {"object": "list", "data": cards}

    @app.post("/tokenize")
    async def tokenize(request: Request) -> JSONResponse:
        body = await request.json()
        if not all(isinstance(one.get("role"), str) for one in body.get("messages", ())):
            return refusal("messages: role is missing")
        text = body.get("prompt") or "".join(one["content"] for one in body.get("messages", ()))
        return JSONResponse({"count": len(text), "max_model_len": CONTEXT_LENGTH, "tokens": [0] * len(text)})

    @app.post("/v1/chat/completions")
    @app.post("/v1/completions")
    @app.post("/v1/embeddings")
    async def answer(request: Request) -> Response:
        body = await request.json()
        app.state.asked.append(body)
        if body.get("user") == "breaks":
            raise RuntimeError("the engine is dead")
        if body.get("stream"):
            return StreamingResponse(chunks(body), media_type="text/event-stream")
        await asyncio.sleep(seconds_a_chunk)
        return JSONResponse({"asked": body})

    @app.post("/v1/load_lora_adapter")
    async def load() -> dict[str, str]:
        return {"loaded": "from anywhere"}

    async def chunks(body: dict[str, Any]) -> AsyncIterator[str]:
        for _ in range(3):
            yield f"data: {json.dumps({'asked': body})}\n\n"
            await asyncio.sleep(seconds_a_chunk)
        yield "data: [DONE]\n\n"

    return app


def refusal(message: str) -> JSONResponse:
    """An error as vLLM has it: OpenAI's shape, with a number as its code."""
    error = {"message": message, "type": "BadRequestError", "param": "messages", "code": 400}
    return JSONResponse({"error": error}, 400)
