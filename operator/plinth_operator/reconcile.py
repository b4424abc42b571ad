"""observe -> plan -> apply -> report, for all three kinds."""

import logging
from collections.abc import Callable
from datetime import datetime

from plinth_operator.facts import Manifest, Observed
from plinth_operator.kube import Kube, KubeError
from plinth_operator.plan.jobs import plan_job
from plinth_operator.plan.plan import Plan
from plinth_operator.plan.services import plan_service
from plinth_operator.queue import WorkQueue
from plinth_operator.settings import Settings
from plinth_operator.status.events import event_of
from plinth_operator.status.facts import facts_from
from plinth_operator.status.report import should_write, status_patch
from plinth_operator.store import Key, Store
from plinth_operator.tracking import Tracking

logger = logging.getLogger(__name__)

_CREATE_ONLY = ("RayJob", "ConfigMap")
"""Kinds that are made once and never changed by us: KubeRay and Kueue edit a RayJob, a ConfigMap is immutable."""


class Reconciler:
    """Brings one resource at a time to what its spec asks for."""

    def __init__(
        self,
        kube: Kube,
        store: Store,
        queue: WorkQueue[Key],
        tracking: Tracking,
        *,
        settings: Settings,
        now: Callable[[], datetime],
    ) -> None:
        """Take everything that a reconcile reads and writes."""
        self._kube = kube
        self._store = store
        self._queue = queue
        self._tracking = tracking
        self._settings = settings
        self._now = now
        self.counts: dict[str, int] = {"done": 0, "failed": 0, "conflict": 0}

    async def work(self) -> None:
        """Reconcile keys from the queue until cancelled; a failure is tried again later."""
        while True:
            key = await self._queue.get()
            try:
                await self.reconcile(key)
            except KubeError as error:
                self._retry(key, error)
            except Exception:
                logger.exception("reconcile failed", extra=_where(key))
                self.counts["failed"] += 1
                self._queue.retry(key)
            else:
                self.counts["done"] += 1
                self._queue.succeeded(key)
            finally:
                self._queue.done(key)

    async def reconcile(self, key: Key) -> None:
        """One pass; running it twice does nothing the second time."""
        resource = self._store.resources.get(key)
        if resource is None or resource.deleting:
            self._queue.forget(key)
            return
        plan = self._plan(key)
        self._tracking.want(key, resource.uid, plan, resource.run)
        if plan.deletions or plan.children:
            if not await self._is_current(plan):
                self._queue.add(key)
                return
            for facts in plan.deletions:
                await self._kube.delete(facts.kind, facts.namespace, facts.name, uid=facts.uid)
            if plan.children and not await self._still_there(key, resource.uid, bool(plan.status.get("attempts"))):
                return
            for child in plan.children:
                await self._make(child, resource.uid)
            if plan.children:
                plan = self._plan(key)
        await self._report(key, plan)
        if plan.requeue_seconds is not None:
            self._queue.add_after(key, plan.requeue_seconds)

    def _plan(self, key: Key) -> Plan:
        document, seen = self._store.resources[key].document(key), self._store.observe(key)
        return plan_for(document, seen, settings=self._settings, now=self._now())

    async def _is_current(self, plan: Plan) -> bool:
        """Whether the RayJobs to be deleted are as the plan saw them.

        The pods of a job that has just ended may be seen to vanish before its end is: it must not be taken for lost.
        """
        for facts in plan.deletions:
            if facts.kind == "RayJob":
                found = await self._kube.get(facts.kind, facts.namespace, facts.name)
                if found is not None and int(found["metadata"]["resourceVersion"]) > facts.resource_version:
                    self._store.put(facts_from({**found, "kind": facts.kind}))
                    return False
        return True

    async def _still_there(self, key: Key, uid: str, has_history: bool) -> bool:
        """Whether the owner exists: a child's end may be seen before its owner's, and must not bring the child back."""
        if not has_history:
            return True
        found = await self._kube.get(key.kind, key.namespace, key.name)
        return found is not None and found["metadata"]["uid"] == uid and "deletionTimestamp" not in found["metadata"]

    async def _make(self, child: Manifest, owner_uid: str) -> None:
        if child["kind"] not in _CREATE_ONLY:
            self._store.put(facts_from(await self._kube.apply(child)))
            return
        try:
            made = await self._kube.create(child)
        except KubeError as error:
            if error.reason != "AlreadyExists":
                raise
            meta = child["metadata"]
            found = await self._kube.get(child["kind"], meta["namespace"], meta["name"])
            if found is None:
                raise
            owners = found["metadata"].get("ownerReferences", ())
            if not any(owner["uid"] == owner_uid for owner in owners):
                text = f"a {child['kind']} named {meta['name']} exists and is not ours; delete or rename it"
                raise KubeError(409, "NameConflict", text) from error
            made = found
        self._store.put(facts_from({**made, "kind": child["kind"]}))

    async def _report(self, key: Key, plan: Plan) -> None:
        resource = self._store.resources.get(key)
        if resource is None:
            return
        old = resource.status_document()
        if not should_write(old, plan.status, now=self._now()):
            return
        try:
            answer = await self._kube.patch_status(key.kind, key.namespace, key.name, status_patch(old, plan.status))
        except KubeError as error:
            if error.status == 404:
                return
            raise
        self._store.put_resource({**answer, "kind": key.kind})
        event = event_of(key, resource.uid, old, plan.status, now=self._now())
        if event is not None:
            await self._emit(key, event)

    async def _emit(self, key: Key, event: Manifest) -> None:
        """Events are for people: one that is not taken is no reason to reconcile again."""
        try:
            await self._kube.create(event)
        except KubeError as error:
            logger.warning("event not written: %s", error, extra=_where(key))

    def _retry(self, key: Key, error: KubeError) -> None:
        if error.reason == "Conflict":
            self.counts["conflict"] += 1
        else:
            self.counts["failed"] += 1
            logger.warning("%s", error, extra=_where(key))
        wait = self._queue.retry(key)
        if error.retry_after > wait:
            self._queue.add_after(key, error.retry_after)


def plan_for(document: Manifest, seen: Observed, *, settings: Settings, now: datetime) -> Plan:
    """The plan for a resource of any kind."""
    plan = plan_service if document["kind"] == "ModelService" else plan_job
    return plan(document, seen, settings=settings, now=now)


def _where(key: Key) -> dict[str, str]:
    return {"kind": key.kind, "namespace": key.namespace, "resource": key.name}
