"""Whether a resource could run, without asking anybody: the schema has passed, now the resolver is tried."""

from plinth_api.errors import InvalidSpec, Problem
from plinth_api.model_service import ModelService
from plinth_api.parse import Resource
from plinth_api.resolve import ResolveSettings, resolve_serve_run, resolve_train_run

_ANYWHERE = ResolveSettings(
    uid="validate",
    volume_root="/volumes",
    checkpoint_root="/checkpoints",
    work_dir="/work",
    tracking_uri="validate",
    has_vllm=True,
)


def problems_of(resource: Resource) -> tuple[Problem, ...]:
    """Every conflict in the resource's spec."""
    try:
        if isinstance(resource, ModelService):
            resolve_serve_run(resource, _ANYWHERE, {})
        else:
            resolve_train_run(resource, _ANYWHERE, {})
    except InvalidSpec as error:
        return error.problems
    return ()
