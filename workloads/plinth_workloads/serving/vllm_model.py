"""The model and the adapters of a vLLM service on this node's disk, and what their files say of how to serve them.

Enters: a ServeRun. Leaves: a folder, arguments for vLLM, and adapters, each with its folder or why it has none. Knows
neither Ray nor vLLM.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plinth_api.run import ServeAdapter, ServeRun
from plinth_workloads.errors import UserError
from plinth_workloads.models.adapters import adapter_base_uri
from plinth_workloads.models.fetch import fetch_model
from plinth_workloads.models.model_files import read_json
from plinth_workloads.models.sentence_files import is_sentence_model
from plinth_workloads.models.tasks import task_of
from plinth_workloads.models.virtual_tokens import ADAPTER_CONFIG
from plinth_workloads.serving.adapter_folder import fetch_adapter
from plinth_workloads.serving.vllm_config import MOST_LORA_RANK, FetchedModel

_TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")

_TOOL_PARSERS = {"<tool_call>": "hermes", '"parameters": dictionary of argument': "llama3_json"}
"""What a chat template tells a model to write, and vLLM's parser of it: those formats that tool_calls.py reads too."""


@dataclass(frozen=True, slots=True)
class FetchedAdapter:
    """An adapter that is wanted.

    Attributes:
        name: By which clients ask for it.
        uri: Its version.
        folder: With its files; None where it cannot be served.
        error: Why not.
    """

    name: str
    uri: str
    folder: Path | None = None
    error: str | None = None


def fetch(run: ServeRun) -> tuple[FetchedModel, tuple[FetchedAdapter, ...]]:
    """The model of a service and its adapters, downloaded once; an adapter that cannot be had fails alone.

    Raises:
        UserError: ModelNotFound, AccessDenied, TrackingUnavailable or TrackingDenied, and ModelLoadFailed where vLLM
            serves no model such as this.
    """
    uri = run.model.uri
    folder = fetch_model(uri, tracking_uri=run.tracking_uri, cache_dir=Path(run.models_dir))
    if adapter_base_uri(folder) is not None:
        what = f"{uri} is an adapter, which engine vllm serves beside its base model"
        raise UserError("ModelLoadFailed", f"{what}; name the base in spec.model and this in spec.adapters")
    task = task_of(folder, uri, run.task)
    if task == "classify":
        raise UserError("ModelLoadFailed", f"{uri} classifies texts, which engine vllm does not; set engine: torch")
    if not any(folder.glob("*.safetensors")):
        raise UserError("ModelLoadFailed", f"{uri} has no weights in safetensors, and no others are loaded")
    adapters = tuple(_fetched_adapter(run, adapter) for adapter in run.model.adapters)
    model = FetchedModel(
        folder=str(folder),
        task=task,
        pools_by_files=is_sentence_model(folder),
        tool_parser=_tool_parser(folder),
        lora_rank=max((_rank(adapter.folder) for adapter in adapters if adapter.folder), default=0),
    )
    return model, adapters


def _fetched_adapter(run: ServeRun, adapter: ServeAdapter) -> FetchedAdapter:
    try:
        folder = fetch_adapter(run, adapter.uri, run.model.uri)
        for problem in _adapter_problems(folder):
            raise UserError("ModelLoadFailed", f"{adapter.uri} {problem}")
    except UserError as error:
        return FetchedAdapter(adapter.name, adapter.uri, error=error.message)
    return FetchedAdapter(adapter.name, adapter.uri, folder)


def _adapter_problems(folder: Path) -> Iterator[str]:
    settings = read_json(folder / ADAPTER_CONFIG)
    if not settings:
        yield "is no adapter; serve it as spec.model of another service"
    if settings.get("peft_type", "LORA") != "LORA" or settings.get("use_dora"):
        yield "is no adapter of plain LoRA, which is all that vLLM serves beside a model; merge it, and serve that"
    if _rank(folder) > MOST_LORA_RANK:
        yield f"has a rank of {_rank(folder)}, and vLLM serves at most {MOST_LORA_RANK}"


def _rank(folder: Path) -> int:
    settings = read_json(folder / ADAPTER_CONFIG)
    return max([int(settings.get("r", 0)), *map(int, (settings.get("rank_pattern") or {}).values())])


def _tool_parser(folder: Path) -> str | None:
    text = "".join(path.read_text() for name in _TEMPLATES if (path := folder / name).is_file())
    # Within tokenizer_config.json quotes are escaped.
    return next((parser for mark, parser in _TOOL_PARSERS.items() if mark in text.replace('\\"', '"')), None)
