"""From an adapter's URI to its folder on this node, for whichever engine serves it: one for another base is refused."""

from pathlib import Path

from plinth_api.run import ServeRun
from plinth_workloads.errors import UserError
from plinth_workloads.models.adapters import adapter_base_uri
from plinth_workloads.models.fetch import fetch_model


def fetch_adapter(run: ServeRun, uri: str, model_uri: str) -> Path:
    """The folder of an adapter, downloaded once.

    Args:
        run: The service's document.
        uri: Of the adapter.
        model_uri: Of the model beside which it is to be served.

    Raises:
        UserError: As `fetch_model`, and ModelLoadFailed where it was trained for another registered model.
    """
    folder = fetch_model(uri, tracking_uri=run.tracking_uri, cache_dir=Path(run.models_dir))
    base = adapter_base_uri(folder) or ""
    if base != model_uri and base.startswith("models:/") and model_uri.startswith("models:/"):
        raise UserError("ModelLoadFailed", f"{uri} was trained for {base}, and {model_uri} is served")
    return folder
