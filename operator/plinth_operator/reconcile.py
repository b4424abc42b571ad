"""observe -> plan -> apply -> report, for all three kinds."""

import logging
from collections.abc import Callable
from datetime import datetime

from plinth_operator.constants import HASH_ANNOTATION, RAY_CLUSTER_LABEL, UID_LABEL
from plinth_operator.facts import Manifest, Observed, RayJobFacts
from plinth_operator.kube import Kube, KubeError
from plinth_operator.plan.jobs import plan_job
from plinth_operator.plan.plan import Plan
from plinth_operator.plan.refusals import Refusal, refusal_cause
from plinth_operator.plan.services import plan_service
from plinth_operator.queue import WorkQueue
from plinth_operator.settings import Settings
from plinth_operator.status.events import event_of, rollout_event_of
from plinth_operator.status.facts import facts_from
from plinth_operator.status.reasons import Cause
from plinth_operator.status.report import should_write, status_patch
from plinth_operator.store import Key, Resource, Store
from plinth_operator.tracking import Tracking

logger = logging.getLogger(__name__)

_CREATE_ONLY = ("RayJob", "ConfigMap")
"""Kinds that are made once and never changed by us: KubeRay and Kueue edit a RayJob, a ConfigMap is immutable."""

_CREATED_FIRST = (*_CREATE_ONLY, "NetworkPolicy")
"""Kinds that are created where none is known; the others are applied from the first, or fields of a first creation
that are rendered no more would stay. The lists of a NetworkPolicy are replaced as a whole."""


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
        if plan.deletions or plan.children or plan.look_again:
            if not await self._is_current(plan):
                self._queue.add(key)
                return
            for facts in plan.deletions:
                await self._kube.delete(facts.kind, facts.namespace, facts.name, uid=facts.uid)
            if plan.children and not await self._still_there(key, resource.uid, bool(plan.status.get("attempts"))):
                return
            if plan.children:
                await self._make_all(key, resource.uid, plan)
                if self._store.resources.get(key) is not resource:
                    return
                plan = self._plan(key)
                if plan.deletions or plan.look_again:
                    # The spec has changed meanwhile. A status that tells of an end must come after what it ends.
                    self._queue.add(key)
                    return
        await self._report(key, resource, plan)
        if plan.requeue_seconds is not None:
            self._queue.add_after(key, plan.requeue_seconds)

    def _plan(self, key: Key, refusal: Cause | None = None) -> Plan:
        document, seen = self._store.resources[key].document(key), self._store.observe(key)
        return plan_for(document, seen, settings=self._settings, now=self._now(), refusal=refusal)

    async def _is_current(self, plan: Plan) -> bool:
        """Whether the RayJobs to be ended, and their pods where those decide, are as the plan saw them.

        The pods of a job that has just ended may be seen to vanish before its end is, and those of one that has just
        begun later than its beginning: neither must be taken for lost.
        """
        doomed = [facts for facts in plan.deletions if isinstance(facts, RayJobFacts)]
        for facts in (*doomed, *plan.look_again):
            found = await self._kube.get(facts.kind, facts.namespace, facts.name)
            if found is not None and int(found["metadata"]["resourceVersion"]) > facts.resource_version:
                self._store.put(facts_from({**found, "kind": facts.kind}))
                return False
            if plan.look_at_pods and facts.ray_cluster:
                selector = f"{RAY_CLUSTER_LABEL}={facts.ray_cluster}"
                pods = [pod async for pod in self._kube.list("Pod", facts.namespace, label_selector=selector)]
                if any([self._store.put(facts_from(pod)) for pod in pods]):
                    return False
        return True

    async def _still_there(self, key: Key, uid: str, has_history: bool) -> bool:
        """Whether the owner exists: a child's end may be seen before its owner's, and must not bring the child back."""
        if not has_history:
            return True
        found = await self._kube.get(key.kind, key.namespace, key.name)
        return found is not None and found["metadata"]["uid"] == uid and "deletionTimestamp" not in found["metadata"]

    async def _make_all(self, key: Key, owner_uid: str, plan: Plan) -> None:
        """Create or apply the children in order; what the API server refuses is told before it is tried again."""
        seen = self._store.observe(key)
        known = {(facts.kind, facts.name) for facts in (*seen.children, *seen.ray_services)}
        for child in plan.children:
            try:
                await self._make(child, owner_uid, (child["kind"], child["metadata"]["name"]) in known)
            except KubeError as error:
                resource = self._store.resources.get(key)
                # What is said of the children of an older spec is nothing to say of this one.
                asked = (owner_uid, plan.status.get("observedGeneration"))
                if resource is not None and (resource.uid, resource.generation) == asked:
                    refusal = Refusal(error.status, error.reason, error.message, error.details)
                    cause = refusal_cause(resource.document(key), child, refusal)
                    refused = self._plan(key, cause)
                    if cause is not None and not (refused.deletions or refused.look_again):
                        await self._report(key, resource, refused)
                raise

    async def _make(self, child: Manifest, owner_uid: str, is_known: bool) -> None:
        kind = child["kind"]
        made: Manifest | None = None
        if kind in _CREATED_FIRST and not is_known:
            made = await self._create(child, owner_uid)
        elif not is_known:
            await self._require_free(child, owner_uid)
        if made is None:
            made = await self._kube.apply(child)
        self._store.put(facts_from({**made, "kind": kind}))

    async def _create(self, child: Manifest, owner_uid: str) -> Manifest | None:
        """The object, ours that is there already included; None where that one must be applied."""
        try:
            return await self._kube.create(child)
        except KubeError as error:
            if error.reason != "AlreadyExists":
                raise
            meta = child["metadata"]
            found = await self._kube.get(child["kind"], meta["namespace"], meta["name"])
            if found is None:
                raise
            _require_ours(child["kind"], found, owner_uid)
            if child["kind"] not in _CREATE_ONLY:
                return None
            if child.get("immutable") and _is_outdated(found, child):
                self._store.put(facts_from({**found, "kind": child["kind"]}))
                text = f"the {child['kind']} {meta['name']} is of an older spec; it is made anew"
                raise KubeError(409, "Conflict", text) from error
            return found

    async def _require_free(self, child: Manifest, owner_uid: str) -> None:
        """Look before an apply takes over an object of somebody else, or KubeRay a Service that stands in its way."""
        wanted = [(child["kind"], child["metadata"]["name"])]
        if child["kind"] == "RayService":
            wanted.append(("Service", child["spec"]["serveService"]["metadata"]["name"]))
        for kind, name in wanted:
            found = await self._kube.get(kind, child["metadata"]["namespace"], name)
            if found is not None:
                _require_ours(kind, found, owner_uid)

    async def _report(self, key: Key, resource: Resource, plan: Plan) -> None:
        if self._store.resources.get(key) is not resource:
            return
        old = resource.status_document()
        if not should_write(old, plan.status, now=self._now()):
            return
        patch = status_patch(old, plan.status)
        try:
            answer = await self._kube.patch_status(key.kind, key.namespace, key.name, patch, uid=resource.uid)
        except KubeError as error:
            if error.status != 404:
                raise
            self._store.remove_resource(key, resource.uid)
            self._tracking.abandon(key, resource)
            return
        self._store.put_resource({**answer, "kind": key.kind})
        if answer["metadata"].get("generation", 1) != plan.status.get("observedGeneration"):
            # A newer spec has come with the answer, and is no news any more when the watch tells of it.
            self._queue.add(key)
        for make_event in (event_of, rollout_event_of):
            event = make_event(key, resource.uid, old, plan.status, now=self._now())
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
        self._queue.retry(key, error.retry_after)


def plan_for(
    document: Manifest, seen: Observed, *, settings: Settings, now: datetime, refusal: Cause | None = None
) -> Plan:
    """The plan for a resource of any kind."""
    plan = plan_service if document["kind"] == "ModelService" else plan_job
    return plan(document, seen, settings=settings, now=now, refusal=refusal)


def _require_ours(kind: str, found: Manifest, owner_uid: str) -> None:
    """Our label is on what KubeRay makes for us as well; only what we make has our owner."""
    meta = found["metadata"]
    owners = {owner["uid"] for owner in meta.get("ownerReferences", ())}
    if owner_uid not in owners and meta.get("labels", {}).get(UID_LABEL) != owner_uid:
        text = f"a {kind} named {meta['name']} exists in this namespace and is not ours; delete or rename it"
        raise KubeError(409, "NameConflict", text)


def _is_outdated(found: Manifest, wanted: Manifest) -> bool:
    was = found["metadata"].get("annotations", {}).get(HASH_ANNOTATION)
    return "deletionTimestamp" in found["metadata"] or was != wanted["metadata"]["annotations"][HASH_ANNOTATION]


def _where(key: Key) -> dict[str, str]:
    return {"kind": key.kind, "namespace": key.namespace, "resource": key.name}
