"""The operator's entry point: settings enter, the loops run until SIGTERM or until leadership is lost."""

import asyncio
import gc
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from contextlib import AsyncExitStack, suppress

from plinth_operator.clock import utc_now
from plinth_operator.kube import Kube
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
_EXIT_SECONDS = 1.8
_FIRST_PASS_SECONDS = 10.0
_SECOND_LIST_SECONDS = 15.0


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
    # Documents by the thousand are garbage without cycles: looking for those all the time is a tenth of the work.
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    return _run_beside_signals(settings)


def _run_beside_signals(settings: Settings) -> int:
    """Run the loops in a thread of their own: in the main one, kopf would put its signal handlers in place of ours."""
    loop, stopped = asyncio.new_event_loop(), asyncio.Event()
    told, finished, codes = threading.Event(), threading.Event(), [_EXIT_LOST]

    async def work() -> None:
        codes[0] = await _run(settings, stopped)

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(work())
        finally:
            told.set()
            finished.set()

    def stop(*_: object) -> None:
        told.set()
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(stopped.set)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    threading.Thread(target=run, name="loops", daemon=True).start()
    told.wait()
    # Everything of ours has ended by then; what kopf has left behind need not.
    finished.wait(_EXIT_SECONDS)
    return codes[0]


async def _run(settings: Settings, stopped: asyncio.Event) -> int:
    identity = f"{os.environ.get('HOSTNAME') or socket.gethostname()}_{secrets.token_hex(4)}"
    async with AsyncExitStack() as stack:
        kube = await stack.enter_async_context(Kube(requests_per_second=settings.requests_per_second))
        lease_kube = await stack.enter_async_context(Kube(requests_per_second=10))
        mlflow = await stack.enter_async_context(
            Mlflow(settings.tracking_uri, settings.cluster_name, has_users=settings.tracking_users)
        )
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
    watcher = Watcher(
        kube, store, queue, tracking, namespace=settings.namespace, resync_seconds=settings.resync_seconds
    )
    reconciler = Reconciler(kube, store, queue, tracking, settings=settings, now=utc_now)
    poller = ServicePoller(store, queue, settings=settings, now=utc_now)
    probes = Probes(kube, store, queue, reconciler, watcher, resync_seconds=settings.resync_seconds, now=utc_now)
    runner = await probes.serve(settings.probe_host, settings.probe_port) if settings.probe_port else None
    try:
        async with asyncio.TaskGroup() as group:
            await leader.acquire()
            group.create_task(_keep_or_die(leader))
            await watcher.list_with_patience()
            for task in (tracking.run(), poller.run()):
                group.create_task(task)
            for _ in range(settings.workers):
                group.create_task(reconciler.work())
            # kopf lists everything once more before it watches, which must not delay what there is to do.
            await _first_pass(queue)
            group.create_task(watcher.run())
            group.create_task(_resync(watcher, settings.resync_seconds))
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


async def _first_pass(queue: WorkQueue[Key]) -> None:
    deadline = time.monotonic() + _FIRST_PASS_SECONDS
    while not queue.is_idle() and time.monotonic() < deadline:
        await asyncio.sleep(0.05)


async def _resync(watcher: Watcher, seconds: float) -> None:
    # Soon the first time: what was deleted between the first list and the watches is known from no event.
    await asyncio.sleep(min(seconds, _SECOND_LIST_SECONDS))
    while True:
        await watcher.list_with_patience()
        await asyncio.sleep(seconds)


if __name__ == "__main__":
    sys.exit(main())
