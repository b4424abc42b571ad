"""What a replica of a service tells at GET /-/state: written by the workload, read by the operator."""

from plinth_api.base import StatusModel

STATE_PATH = "/-/state"


class AdapterState(StatusModel):
    """One adapter that is wanted beside the model.

    Attributes:
        name: By which clients ask for it.
        uri: The version in service; None while there is none.
        target_uri: The version that is wanted.
        load_error: Why that is not in service.
    """

    name: str = ""
    uri: str | None = None
    target_uri: str = ""
    load_error: str | None = None


class ServiceState(StatusModel):
    """One replica; counts are since it started. In wire form what is None is left out.

    Attributes:
        name: By which clients ask for the model.
        model_uri: The version in service.
        target_uri: The version that is wanted.
        loaded: Whether a version is in service.
        load_error: Why the wanted version is not in service.
        adapters: Those that are wanted.
        prompt_hash: Which beginning of chats is in service; empty for none.
        api_keys: How many keys are accepted; None where none is asked for.
        context_length: Tokens of prompt and answer together.
        running: Requests that tokens are made for.
        waiting: Requests that wait for a place.
        requests: Requests so far.
        errors: Requests that ended for a reason of ours (5xx).
        tokens: Tokens made.
    """

    name: str = ""
    model_uri: str | None = None
    target_uri: str = ""
    loaded: bool = False
    load_error: str | None = None
    adapters: tuple[AdapterState, ...] = ()
    prompt_hash: str = ""
    api_keys: int | None = None
    context_length: int | None = None
    running: int = 0
    waiting: int = 0
    requests: int = 0
    errors: int = 0
    tokens: int = 0
