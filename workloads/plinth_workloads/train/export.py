"""From trained weights to the artifact that is registered: a Hugging Face folder with safetensors."""

import logging
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from plinth_api.run import TrainRun
from plinth_workloads.models.load import load_model
from plinth_workloads.models.virtual_tokens import num_virtual_tokens, save_virtual_tokens
from plinth_workloads.objectives.by_name import objective_of
from plinth_workloads.objectives.objective import Objective
from plinth_workloads.train.parallel import Workers

logger = logging.getLogger(__name__)


def export_model(run: TrainRun, model: nn.Module, tokenizer: Any, workers: Workers, folder: Path) -> None:
    """Write the model: a full model's folder, or an adapter's that names its base by URI.

    Every process calls this, for sharded weights come together here; the first one writes.

    Args:
        run: The run document.
        model: The trained model.
        tokenizer: Saved beside it.
        workers: The processes.
        folder: What is there already is replaced.
    """
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = _with_tied(model, get_model_state_dict(model, options=whole))
    if not workers.is_first:
        return
    shutil.rmtree(folder, ignore_errors=True)
    writable: Any = model
    is_adapter = run.method.full is None
    if run.training.precision == "bf16" and not is_adapter:
        weights = {
            name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in weights.items()
        }
    if not is_adapter:
        writable.config.use_cache = True
    if num_virtual_tokens(model):
        save_virtual_tokens(model, weights, folder)
    else:
        writable.save_pretrained(folder, state_dict=weights, safe_serialization=True)
    objective = objective_of(run)
    if is_adapter:
        objective.describe_adapter(model, folder)
    if is_adapter and run.output.merge:
        _merge(run, folder)
    objective.describe(model, folder)
    tokenizer.save_pretrained(folder)
    if objective.pipeline_class is not None and (not is_adapter or run.output.merge):
        _write_mlmodel(folder, tokenizer, objective)


def _with_tied(model: nn.Module, weights: dict[str, Any]) -> dict[str, Any]:
    """Weights that are one in the model are one tensor again, which is written once; gathering makes a copy of each."""
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        kept = first.setdefault(id(parameter), name)
        if kept in weights and name in weights:
            weights[name] = weights[kept]
    return weights


def _merge(run: TrainRun, folder: Path) -> None:
    """Replace the adapter in `folder` by its base with the adapter merged in."""
    cache, auto_class = Path(run.work_dir) / "cache", objective_of(run).auto_class
    merged = load_model(folder, str(folder), auto_class=auto_class, tracking_uri=run.tracking.uri, cache_dir=cache)
    shutil.rmtree(folder)
    merged.config.use_cache = True
    merged.save_pretrained(folder, safe_serialization=True)


def _write_mlmodel(folder: Path, tokenizer: Any, objective: Objective) -> None:
    """Let mlflow.transformers.load_model open the folder: its own log_model would store pickled or doubled files."""
    import transformers

    tokenizer.save_pretrained(folder / "components" / "tokenizer")
    architecture = yaml.safe_load((folder / "config.json").read_text())["architectures"][0]
    flavor = {
        "transformers_version": transformers.__version__,
        "code": None,
        "task": objective.pipeline_tag,
        "instance_type": objective.pipeline_class,
        "framework": "pt",
        "pipeline_model_type": architecture,
        "source_model_name": architecture,
        "model_binary": ".",
        "tokenizer_type": type(tokenizer).__name__,
        "components": ["tokenizer"],
    }
    mlmodel = {
        "artifact_path": "model",
        "flavors": {"transformers": flavor},
        "utc_time_created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(mlmodel, sort_keys=False))
