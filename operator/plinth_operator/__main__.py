"""The operator's entry point: settings enter, the loops run until SIGTERM or until leadership is lost."""

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
import time
from contextlib import AsyncExitStack

from plinth_operator.clock import utc_now
from plinth_operator.kube import Kube, KubeError
from plinth_operator.leader import Leader, LeadershipLost
from plinth_operator.logs import log_as_json
from plinth_operator.mlflow import Mlflow
from plinth_operator.probes import Probes
from plinth_operator.queue import WorkQueue
from plinth_operator.reconcile import Reconciler
from plinth_operator.serving import ServicePoller
from plinth_operator.settings import InvalidSettings, Settings, read_settings
from plinth_operator.store import Key, Store
from plinth_operator.tracking import Tracking
from plinth_operator.watch import Watcher

logger = logging.getLogger("plinth_operator")

_EXIT_USAGE = 2
_EXIT_LOST = 1


def main() -> int:
    """Run until told to stop; the exit code."""
    try:
        settings = read_settings()
    except InvalidSettings as error:
        sys.stderr.write(f"{error}\n")
        return _EXIT_USAGE
    if not settings.tracking_uri:
        sys.stderr.write("PLINTH_TRACKING_URI: is required: the address of the MLflow server\n")
        return _EXIT_USAGE
    log_as_json(settings.log_level)
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    identity = f"{os.environ.get('HOSTNAME') or socket.gethostname()}_{secrets.token_hex(4)}"
    async with AsyncExitStack() as stack:
        kube = await stack.enter_async_context(Kube(requests_per_second=settings.requests_per_second))
        lease_kube = await stack.enter_async_context(Kube(requests_per_second=10))
        mlflow = await stack.enter_async_context(Mlflow(settings.tracking_uri, settings.cluster_name))
        leader = Leader(
            lease_kube,
            namespace=settings.operator_namespace,
            identity=identity,
            lease_seconds=settings.lease_seconds,
        )
        work = asyncio.create_task(_operate(settings, kube, mlflow, leader))
        stop = asyncio.create_task(stopped.wait())
        await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        code = 0
        if work.done():
            code = _EXIT_LOST
            error = work.exception()
            logger.error("stopping: %s", error, exc_info=error)
        work.cancel()
        stop.cancel()
        await asyncio.wait((work, stop), timeout=1.0)
        if code == 0:
            await leader.release()
    return code


async def _operate(settings: Settings, kube: Kube, mlflow: Mlflow, leader: Leader) -> None:
    store = Store()
    queue: WorkQueue[Key] = WorkQueue(time.monotonic)
    tracking = Tracking(mlflow, store, queue, namespace=settings.namespace, now=utc_now)
    watcher = Watcher(kube, store, queue, tracking, settings.namespace)
    reconciler = Reconciler(kube, store, queue, tracking, settings=settings, now=utc_now)
    poller = ServicePoller(store, queue, url=settings.service_state_url, now=utc_now)
    probes = Probes(kube, store, queue, reconciler, watcher, resync_seconds=settings.resync_seconds, now=utc_now)
    runner = await probes.serve(settings.probe_host, settings.probe_port) if settings.probe_port else None
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(watcher.run())
            await leader.acquire()
            group.create_task(_keep_or_die(leader))
            await _list_with_patience(watcher)
            for task in (tracking.run(), poller.run(), _resync(watcher, settings.resync_seconds)):
                group.create_task(task)
            for _ in range(settings.workers):
                group.create_task(reconciler.work())
    finally:
        if runner is not None:
            await runner.cleanup()


async def _keep_or_die(leader: Leader) -> None:
    try:
        await leader.keep()
    except LeadershipLost as error:
        logger.error("stopping: %s", error)
        # At once: a write that is under way must not be finished in the time that another replica believes in.
        os._exit(_EXIT_LOST)


async def _list_with_patience(watcher: Watcher) -> None:
    while True:
        try:
            return await watcher.list_all()
        except KubeError as error:
            logger.warning("cannot list: %s", error)
            await asyncio.sleep(1.0)


async def _resync(watcher: Watcher, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await _list_with_patience(watcher)


if __name__ == "__main__":
    sys.exit(main())
