"""What is asked about a service, not of its model: health, metrics and state.

Enters: GET of kubelets, Serve, Prometheus and the operator. Leaves: names and numbers, never anything of a prompt.
Needs no key and is not counted, which is why it stands apart from what clients ask.
"""

from dataclasses import asdict

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from plinth_api.service_state import STATE_PATH, LoadState, ServiceState
from plinth_workloads.serving.api_keys import ApiKeys
from plinth_workloads.serving.engine import EngineStats, GenerationFailed
from plinth_workloads.serving.metrics import ServiceMetrics
from plinth_workloads.serving.served_model import ModelNotReady, ServedModel

HEALTH_PATH = "/health"
LIVE_PATH = "/health/live"
READY_PATH = "/health/ready"
METRICS_PATH = "/metrics"

PROBE_PATHS = frozenset({HEALTH_PATH, LIVE_PATH, READY_PATH, METRICS_PATH, STATE_PATH})


def add_probes(app: FastAPI, served: ServedModel, *, name: str, metrics: ServiceMetrics, keys: ApiKeys | None) -> None:
    """Answer on `PROBE_PATHS`.

    Args:
        app: The application.
        served: The version in use.
        name: By which clients ask for it.
        metrics: What is counted.
        keys: What opens the rest; None for everybody.
    """

    @app.get(LIVE_PATH)
    async def live() -> JSONResponse:
        return JSONResponse({"status": "ok", "message": "the process answers"})

    @app.get(READY_PATH)
    @app.get(HEALTH_PATH)
    async def health() -> JSONResponse:
        return await _health(served)

    @app.get(METRICS_PATH)
    async def scrape() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @app.get(STATE_PATH)
    async def state() -> JSONResponse:
        return JSONResponse(_state(served, name, metrics, keys).to_wire())


async def _health(served: ServedModel) -> JSONResponse:
    if served.held is not None:
        return JSONResponse({"status": "held", "message": served.held}, 503)
    try:
        await served.check_health()
    except ModelNotReady as error:
        return JSONResponse({"status": "failed" if error.failed else "loading", "message": str(error)}, 503)
    except GenerationFailed as error:
        return JSONResponse({"status": "unhealthy", "message": str(error)}, 503)
    return JSONResponse({"status": "ok", "message": f"{served.uri} answers"})


def _state(served: ServedModel, name: str, metrics: ServiceMetrics, keys: ApiKeys | None) -> ServiceState:
    engine = served.engine
    stats = served.stats() or EngineStats(running=0, waiting=0)
    step = served.load.step
    return ServiceState(
        name=name,
        replica_id=served.replica_id,
        model_uri=served.uri,
        target_uri=served.target_uri,
        loaded=engine is not None,
        load_error=served.load_error,
        held=served.held,
        candidate=served.candidate.state(),
        loading=LoadState(**asdict(step)) if step else None,
        adapters=served.adapter_states(),
        prompt_hash=served.prompt_hash,
        api_keys=None if keys is None else len(keys),
        context_length=engine.context_length if engine else None,
        running=stats.running,
        waiting=stats.waiting,
        requests=metrics.requests,
        errors=metrics.errors,
        tokens=metrics.tokens,
    )
