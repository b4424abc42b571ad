"""As much of vLLM as ray.serve.llm imports while it makes an application and its replicas, and no engine.

For processes that have this folder's parent on their path, where vLLM itself is not installed. The names are those that
Ray 2.60 imports.
"""

import sys
from dataclasses import make_dataclass
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from vllm_arguments import ENGINE_ARGUMENTS, FRONTEND_ARGUMENTS

_PROTOCOLS = {
    "openai.chat_completion": ("ChatCompletionRequest", "ChatCompletionResponse", "ChatCompletionStreamResponse"),
    "openai.completion": ("CompletionRequest", "CompletionResponse", "CompletionStreamResponse"),
    "pooling.embed": ("EmbeddingChatRequest", "EmbeddingCompletionRequest", "EmbeddingResponse"),
    "pooling.scoring": ("ScoreResponse", "ScoreTextRequest"),
    "serve.engine": ("ErrorInfo", "ErrorResponse"),
    "serve.tokenize": (
        "DetokenizeRequest",
        "DetokenizeResponse",
        "TokenizeChatRequest",
        "TokenizeCompletionRequest",
        "TokenizeResponse",
    ),
    "speech_to_text.transcription": (
        "TranscriptionRequest",
        "TranscriptionResponse",
        "TranscriptionStreamResponse",
    ),
}


def _add(path: str, **names: Any) -> None:
    """Put a module with these names where an import looks first; the packages above it too."""
    for depth in range(1, len(path.split(".")) + 1):
        name = ".".join(["vllm", *path.split(".")[:depth]])
        module = sys.modules.setdefault(name, ModuleType(name))
        # A module without a path is no package to the import system.
        module.__path__ = []
    vars(module).update(names)


for _where, _names in _PROTOCOLS.items():
    _add(f"entrypoints.{_where}.protocol", **{name: type(name, (BaseModel,), {}) for name in _names})
_add("engine.arg_utils", AsyncEngineArgs=make_dataclass("AsyncEngineArgs", ENGINE_ARGUMENTS))
_add("entrypoints.launchers.cli_args", FrontendArgs=make_dataclass("FrontendArgs", FRONTEND_ARGUMENTS))
_add("exceptions", VLLMClientError=type("VLLMClientError", (Exception,), {}))
