"""The Ray Serve application: a ServeRun enters as `args`, replicas that answer HTTP leave.

The model version is the deployment's user_config (a ServeModel), so that Serve hands a new one to running replicas.
"""

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import Any, cast

from ray import serve
from starlette.types import Receive, Scope, Send

from plinth_api.quantity import whole_cpus
from plinth_api.run import ServeModel, ServeRun
from plinth_workloads.models.model_load import ModelLoad, following
from plinth_workloads.serving.api_keys import ApiKeys
from plinth_workloads.serving.asgi import build_asgi
from plinth_workloads.serving.engine import ModelEngine
from plinth_workloads.serving.idle_clock import IdleClock
from plinth_workloads.serving.idle_policy import IDLE_SECONDS
from plinth_workloads.serving.probe_server import ProbeServer
from plinth_workloads.serving.replica_memory import tidy_memory
from plinth_workloads.serving.room import Room, needed_bytes
from plinth_workloads.serving.served_model import ServedModel
from plinth_workloads.serving.served_names import ServedNames

logger = logging.getLogger(__name__)

DEPLOYMENT = "model"
"""Name of the deployment whose user_config says which version is served."""

MAX_BATCH_SIZE = {"cpu": 64, "cuda": 256}
"""Rows that are decoded together. With more of them each step takes longer by about as much as it gives more."""

MAX_WAITING = 128

_MAX_ONGOING_REQUESTS = 2 * (max(MAX_BATCH_SIZE.values()) + MAX_WAITING)
"""More than the engine takes, so that the engine answers 429 instead of Serve letting requests wait unseen."""

_CACHE_SHARE = 0.5
"""Of the memory that is free once a version is loaded; the next version is loaded beside it."""

_HEALTH_TIMEOUT_SECONDS = 60.0
"""Longer than an engine waits for its token, so that the reason is told and not only the time that passed."""


def build_app(args: dict[str, Any]) -> serve.Application:
    """The application for a ServeRun in wire form.

    A change of `args` starts new replicas. So `model` and `scaling` may be left out of them, and be given in Serve's
    config for the deployment only, as user_config and as num_replicas or autoscaling_config, which win in any case.
    """
    run = ServeRun.from_wire(args)
    options: dict[str, Any] = {
        "name": DEPLOYMENT,
        "ray_actor_options": {"num_cpus": whole_cpus(run.cpus), "num_gpus": run.gpus},
        "max_ongoing_requests": _MAX_ONGOING_REQUESTS,
        "health_check_timeout_s": _HEALTH_TIMEOUT_SECONDS,
        **run.deployment_options(),
        "user_config": run.model.to_wire(),
    }
    deployment = cast(serve.Deployment, serve.deployment(serve.ingress(_ReplicaAsgi())(Replica)))
    return deployment.options(**options).bind(_in_replicas(run))


def _in_replicas(run: ServeRun) -> dict[str, Any]:
    """What replicas are made with: nothing that changes in place, or they would be made anew when it does."""
    return {key: value for key, value in run.to_wire().items() if key not in ("model", "scaling")}


class _ReplicaAsgi:
    """Passes requests on to the ASGI app of this process's replica, which exists only once Serve has made it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        replica = cast(Replica, serve.get_replica_context().servable_object)
        await replica.asgi(scope, receive, send)


class Replica:
    """One served model behind HTTP."""

    def __init__(self, run: dict[str, Any]) -> None:
        """Take a ServeRun in wire form; nothing is loaded before `reconfigure`."""
        self._run = ServeRun.from_wire(run)
        load = ModelLoad(max_cache_bytes=self._run.model_cache_bytes)
        self._served = ServedModel(
            partial(_make_engine, self._run, load),
            fetch_adapter=partial(_fetch_adapter, self._run),
            room_for=partial(_room_for, self._run, load),
            tidy=tidy_memory,
            load=load,
        )
        keys = ApiKeys(Path(self._run.api_keys_dir)) if self._run.api_keys_dir else None
        self._names = ServedNames(self._run.name)
        app = build_asgi(self._served, self._names, keys=keys, front_repeats_ids=True)
        self.asgi = IdleClock(app)
        self._answering: ModelEngine | None = None
        port = self._run.probe_port
        self._probes = ProbeServer(app, port=port) if port else None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve a version and its adapters within limits, a ServeModel in wire form.

        Returns while the version loads: the old one answers until then, and the first replica tells its progress on
        /health. A replica that is added to others waits instead, as Serve sends it requests once this returns; so does
        one that requests wait for.
        """
        if self._probes is not None:
            self._probes.start()
        is_first_load, wanted = self._served.target_uri == "", ServeModel.from_wire(user_config)
        self._served.limits, self._names.aliases = wanted.limits, wanted.aliases
        self._served.set_adapters({adapter.name: adapter.uri for adapter in wanted.adapters})
        self._served.set_target(wanted.uri, wanted.prompt)
        self._served.set_candidate(wanted.candidate)
        if is_first_load and (wanted.holds_requests or await asyncio.to_thread(_others_are_running)):
            await self._served.wait_loaded()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For how long nobody has asked: what Serve hands to its autoscaling policy.

        A replica that has just loaded has not been idle; one that cannot load stays to tell why, and one that tries a
        version to count how it does.
        """
        served = self._served
        is_loaded = served.engine is not None and served.engine is self._answering
        if not is_loaded or served.load_error or served.candidate.state() is not None:
            self._answering = served.engine
            self.asgi.restart()
        return {IDLE_SECONDS: self.asgi.idle_seconds}

    async def check_health(self) -> None:
        """Raise where a loaded model does not answer, which makes Serve replace the replica."""
        if self._served.engine is not None:
            await self._served.check_health()


def _others_are_running() -> bool:
    context = serve.get_replica_context()
    application = serve.status().applications.get(context.app_name)
    deployment = application.deployments.get(context.deployment) if application else None
    # The keys are members of a str enum that Ray does not export.
    return deployment is not None and cast(dict[str, int], deployment.replica_states).get("RUNNING", 0) > 0


def _fetch_adapter(run: ServeRun, uri: str, model_uri: str) -> Path:
    from plinth_workloads.serving.adapter_folder import fetch_adapter

    return fetch_adapter(run, uri, model_uri)


def _room_for(run: ServeRun, load: ModelLoad, uri: str) -> Room:
    import torch

    from plinth_workloads.machine_memory import free_bytes
    from plinth_workloads.models.adapters import adapter_base_uri
    from plinth_workloads.models.fetch import fetch_model

    fetch = partial(fetch_model, tracking_uri=run.tracking_uri, cache_dir=Path(run.models_dir))
    with following(load):
        folder = fetch(uri)
        base_uri = adapter_base_uri(folder)
        folders = (folder, fetch(base_uri)) if base_uri else (folder,)
    # What takes an adapter in is made on the host; everything else goes to a GPU as it is read.
    devices = (("cpu", "cuda") if base_uri else ("cuda",)) if run.gpus else ("cpu",)
    return Room(needed_bytes(*folders), min(free_bytes(torch.device(device)) for device in devices))


def _make_engine(run: ServeRun, load: ModelLoad, uri: str) -> ModelEngine:
    with following(load):
        return _loaded_engine(run, uri)


def _loaded_engine(run: ServeRun, uri: str) -> ModelEngine:
    # Imported by replicas only: whoever deploys the application needs no torch.
    from plinth_workloads.machine_memory import free_bytes
    from plinth_workloads.models.fetch import fetch_model
    from plinth_workloads.models.load import load_for_inference
    from plinth_workloads.models.tasks import task_of
    from plinth_workloads.serving.encoder_engine import EncoderEngine
    from plinth_workloads.serving.text_models import load_text_model
    from plinth_workloads.serving.torch_engine import TorchEngine

    tracking_uri, cache_dir, device = run.tracking_uri, Path(run.models_dir), "cuda" if run.gpus else "cpu"
    folder = fetch_model(uri, tracking_uri=tracking_uri, cache_dir=cache_dir)
    task = task_of(folder, uri, run.task)
    if task != "generate":
        return EncoderEngine(
            load_text_model(folder, uri, task, device=device, tracking_uri=tracking_uri, cache_dir=cache_dir)
        )
    model, tokenizer = load_for_inference(uri, tracking_uri=tracking_uri, cache_dir=cache_dir, device=device)
    return TorchEngine(
        model,
        tokenizer,
        max_batch_size=MAX_BATCH_SIZE[device],
        max_waiting=MAX_WAITING,
        max_cache_bytes=int(free_bytes(model.device) * _CACHE_SHARE),
        compile=bool(run.compile),
    )
