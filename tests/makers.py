"""API objects for tests: small documents that are valid as they are, with changes merged into their spec."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from plinth_api.fine_tune_job import FineTuneJob
from plinth_api.model_service import ModelService
from plinth_api.parse import parse_resource
from plinth_api.pretrain_job import PretrainJob
from plinth_api.resolve import ResolveSettings

Document = dict[str, Any]

_PRETRAIN_SPEC: Document = {
    "objective": {"causalLM": {}},
    "model": {
        "architecture": "llama",
        "config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
        "tokenizer": {"train": {"vocabSize": 512}},
    },
    "data": {"train": [{"uri": "file:///data/corpus.jsonl"}], "validation": {"fraction": 0.1}},
    "training": {"steps": 10, "sequenceLength": 64, "globalBatchSize": 8},
    "output": {"model": "tiny"},
}

_FINE_TUNE_SPEC: Document = {
    "model": {"uri": "models:/tiny/1"},
    "task": {"instruction": {}},
    "data": {"train": [{"uri": "file:///data/chats.jsonl"}]},
    "training": {"steps": 10, "sequenceLength": 64, "globalBatchSize": 8},
    "output": {"model": "tiny-chat"},
}

_SERVICE_SPEC: Document = {"model": {"uri": "models:/tiny-chat@champion"}}


def pretrain_document(
    *, name: str = "tiny", namespace: str | None = None, uid: str | None = None, **spec: Any
) -> Document:
    """A PretrainJob as a YAML file has it; `spec` is merged in, where None removes a field."""
    return _document("PretrainJob", {"name": name, "namespace": namespace, "uid": uid}, _PRETRAIN_SPEC, spec)


def fine_tune_document(
    *, name: str = "tiny-chat", namespace: str | None = None, uid: str | None = None, **spec: Any
) -> Document:
    """A FineTuneJob as a YAML file has it; `spec` is merged in, where None removes a field."""
    return _document("FineTuneJob", {"name": name, "namespace": namespace, "uid": uid}, _FINE_TUNE_SPEC, spec)


def service_document(
    *, name: str = "tiny", namespace: str | None = None, uid: str | None = None, **spec: Any
) -> Document:
    """A ModelService as a YAML file has it; `spec` is merged in, where None removes a field."""
    return _document("ModelService", {"name": name, "namespace": namespace, "uid": uid}, _SERVICE_SPEC, spec)


DOCUMENT_MAKERS: dict[str, Callable[..., Document]] = {
    "PretrainJob": pretrain_document,
    "FineTuneJob": fine_tune_document,
    "ModelService": service_document,
}


def make_pretrain_job(**changes: Any) -> PretrainJob:
    """The typed form of `pretrain_document`."""
    job = parse_resource(pretrain_document(**changes))
    assert isinstance(job, PretrainJob)
    return job


def make_fine_tune_job(**changes: Any) -> FineTuneJob:
    """The typed form of `fine_tune_document`."""
    job = parse_resource(fine_tune_document(**changes))
    assert isinstance(job, FineTuneJob)
    return job


def make_model_service(**changes: Any) -> ModelService:
    """The typed form of `service_document`."""
    service = parse_resource(service_document(**changes))
    assert isinstance(service, ModelService)
    return service


def make_resolve_settings(**changes: Any) -> ResolveSettings:
    """Settings of a place such as a laptop."""
    settings = {
        "uid": "uid-1",
        "volume_root": "/volumes",
        "checkpoint_root": "/checkpoints",
        "work_dir": "/work",
        "tracking_uri": "http://mlflow",
    }
    return ResolveSettings(**{**settings, **changes})


def merged(base: Document, changes: Mapping[str, Any]) -> Document:
    """A copy of `base` with `changes` merged into it, object by object; None removes a field."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _document(kind: str, metadata: Mapping[str, str | None], base: Document, spec: Mapping[str, Any]) -> Document:
    given = {key: text for key, text in metadata.items() if text is not None}
    return {"apiVersion": "plinth.dev/v1alpha1", "kind": kind, "metadata": given, "spec": merged(base, spec)}
