"""What the watches have seen: the newest facts of every object, found by owner. No I/O."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from plinth_api.parse import API_VERSION
from plinth_operator.facts import (
    ClaimFacts,
    Manifest,
    ObjectFacts,
    Observed,
    PodFacts,
    RayClusterFacts,
    RayJobFacts,
    RayServiceFacts,
    ReplicaState,
    RunFacts,
    WorkloadFacts,
)


class Key(NamedTuple):
    """A Plinth resource."""

    kind: str
    namespace: str
    name: str


@dataclass(slots=True)
class Resource:
    """A Plinth resource as the API server last gave it; as JSON text, which takes a third of the memory of objects."""

    uid: str
    generation: int = 1
    resource_version: int = 0
    spec: str = "{}"
    status: str = "{}"
    created_at: str = ""
    deleting: bool = False
    labels: str = "{}"
    run: RunFacts | None = None
    versions: dict[str, str] = field(default_factory=dict)
    replica: ReplicaState | None = None
    replicas: tuple[ReplicaState, ...] = ()

    def document(self, key: Key) -> Manifest:
        """The resource as JSON types, status included."""
        return {
            "apiVersion": API_VERSION,
            "kind": key.kind,
            "metadata": {
                "name": key.name,
                "namespace": key.namespace,
                "uid": self.uid,
                "generation": self.generation,
                "creationTimestamp": self.created_at,
                "labels": json.loads(self.labels),
            },
            "spec": json.loads(self.spec),
            "status": json.loads(self.status),
        }

    def status_document(self) -> dict[str, Any]:
        """The status as JSON types."""
        status: dict[str, Any] = json.loads(self.status)
        return status


_ObjectId = tuple[str, str, str]


class Store:
    """Facts by object, with the indices that reconcile and the event handlers need."""

    def __init__(self) -> None:
        """Start empty."""
        self.resources: dict[Key, Resource] = {}
        self.kuberay = False
        self.tracking_error = ""
        self._objects: dict[_ObjectId, ObjectFacts] = {}
        self._keys: dict[str, Key] = {}
        self._children: defaultdict[str, set[_ObjectId]] = defaultdict(set)
        self._claims: defaultdict[str, dict[str, ClaimFacts]] = defaultdict(dict)
        self._owners: dict[_ObjectId, str] = {}

    def put_resource(self, manifest: Manifest) -> Key | None:
        """Take a Plinth resource; its key where it is news, None for what is known or older."""
        meta = manifest["metadata"]
        key = Key(manifest["kind"], meta["namespace"], meta["name"])
        version = int(meta["resourceVersion"])
        known = self.resources.get(key)
        # Whatever its uid: of two objects of one name the older one is gone.
        if known and known.resource_version >= version:
            return None
        if known and known.uid != meta["uid"]:
            self._keys.pop(known.uid, None)
            known = None
        if known is None:
            known = self.resources[key] = Resource(uid=meta["uid"])
        # In place: whoever waits for MLflow or for a replica has this object in hand, and puts what it learns into it.
        known.generation = meta.get("generation", 1)
        known.resource_version = version
        known.spec = json.dumps(manifest.get("spec", {}), separators=(",", ":"))
        known.status = json.dumps(manifest.get("status", {}), separators=(",", ":"))
        known.created_at = meta.get("creationTimestamp", "")
        known.deleting = "deletionTimestamp" in meta
        known.labels = json.dumps(meta.get("labels") or {}, separators=(",", ":"))
        self._keys[meta["uid"]] = key
        return key

    def remove_resource(self, key: Key, uid: str) -> Resource | None:
        """Forget a resource that is gone; what was known of it."""
        known = self.resources.get(key)
        if known is None or known.uid != uid:
            return None
        del self.resources[key]
        self._keys.pop(uid, None)
        return known

    def put(self, facts: ObjectFacts) -> tuple[Key, ...]:
        """Take the facts of an object; the keys of the resources that they are news for."""
        identity = (facts.kind, facts.namespace, facts.name)
        known = self._objects.get(identity)
        if known and known.resource_version >= facts.resource_version:
            return ()
        if known and replace(known, resource_version=facts.resource_version) == facts:
            # Most changes are of fields that nobody here reads.
            self._objects[identity] = facts
            return ()
        if isinstance(facts, ClaimFacts):
            self._objects[identity] = facts
            self._claims[facts.namespace][facts.name] = facts
            changed = known is None or not isinstance(known, ClaimFacts) or known.access_modes != facts.access_modes
            return self._namespace_keys(facts.namespace) if changed else ()
        owner = self._owner_uid(facts)
        self._objects[identity] = facts
        self._file(identity, owner)
        if known is None and isinstance(facts, RayJobFacts | RayServiceFacts):
            self._adopt_orphans(facts)
        return self._keys_of(owner)

    def remove(self, kind: str, namespace: str, name: str, uid: str = "") -> tuple[Key, ...]:
        """Forget an object that is gone; the keys of the resources that care."""
        identity = (kind, namespace, name)
        known = self._objects.get(identity)
        if known is None or (uid and known.uid != uid):
            return ()
        del self._objects[identity]
        if isinstance(known, ClaimFacts):
            self._claims[namespace].pop(name, None)
            return self._namespace_keys(namespace)
        owner = self._owners.pop(identity)
        self._unfile(identity, owner)
        return self._keys_of(owner)

    def key_of(self, uid: str) -> Key | None:
        """The resource with this uid."""
        return self._keys.get(uid)

    def versions(self, kind: str) -> dict[tuple[str, str], int]:
        """The resourceVersion of every known object of a kind, by namespace and name."""
        known = {
            (namespace, name): facts.resource_version
            for (found, namespace, name), facts in self._objects.items()
            if found == kind
        }
        for key, resource in self.resources.items():
            if key.kind == kind:
                known[key.namespace, key.name] = resource.resource_version
        return known

    def observe(self, key: Key) -> Observed:
        """Everything known of a resource and its surroundings."""
        resource = self.resources[key]
        found = sorted(
            (self._objects[identity] for identity in self._children.get(resource.uid, ())),
            key=lambda facts: (facts.kind, facts.name),
        )
        jobs = [facts for facts in found if isinstance(facts, RayJobFacts)]
        listed = (RayJobFacts, RayClusterFacts, RayServiceFacts, PodFacts, WorkloadFacts)
        return Observed(
            children=tuple(facts for facts in found if not isinstance(facts, listed)),
            ray_jobs=tuple(sorted(jobs, key=lambda facts: facts.attempt)),
            ray_clusters=tuple(facts for facts in found if isinstance(facts, RayClusterFacts)),
            ray_services=tuple(facts for facts in found if isinstance(facts, RayServiceFacts)),
            pods=tuple(facts for facts in found if isinstance(facts, PodFacts)),
            workloads=tuple(facts for facts in found if isinstance(facts, WorkloadFacts)),
            claims=self._claims.get(key.namespace, {}),
            run=resource.run,
            versions=resource.versions,
            replica=resource.replica,
            replicas=resource.replicas,
            tracking_error=self.tracking_error,
            kuberay=self.kuberay,
        )

    def jobs(self) -> Iterable[tuple[Key, Resource]]:
        """Every job, for the loops that ask MLflow."""
        return ((key, found) for key, found in list(self.resources.items()) if key.kind != "ModelService")

    def counts(self) -> Mapping[str, int]:
        """The number of objects by kind, for the metrics."""
        counts: defaultdict[str, int] = defaultdict(int)
        for kind, _, _ in self._objects:
            counts[kind] += 1
        return counts

    def _owner_uid(self, facts: ObjectFacts) -> str:
        """Our label, else that of the RayJob or RayService which KubeRay or Kueue made the object for."""
        if facts.owner_uid or not isinstance(facts, RayClusterFacts | WorkloadFacts):
            return facts.owner_uid
        parents = (self._owners.get((kind, facts.namespace, facts.owner_name)) for kind in ("RayJob", "RayService"))
        return next((owner for owner in parents if owner), "")

    def _file(self, identity: _ObjectId, owner: str) -> None:
        """Remember whose child an object is: its owner's owner may be forgotten before it is."""
        before = self._owners.get(identity)
        if before is not None and before != owner:
            self._unfile(identity, before)
        self._owners[identity] = owner
        self._children[owner].add(identity)

    def _unfile(self, identity: _ObjectId, owner: str) -> None:
        self._children[owner].discard(identity)
        if not self._children[owner]:
            del self._children[owner]

    def _adopt_orphans(self, parent: RayJobFacts | RayServiceFacts) -> None:
        """File what was seen before its parent: two watches have no common order."""
        for identity in list(self._children.get("", ())):
            facts = self._objects[identity]
            if isinstance(facts, RayClusterFacts | WorkloadFacts) and facts.owner_name == parent.name:
                self._file(identity, self._owner_uid(facts))

    def _keys_of(self, owner_uid: str) -> tuple[Key, ...]:
        key = self._keys.get(owner_uid)
        return (key,) if key else ()

    def _namespace_keys(self, namespace: str) -> tuple[Key, ...]:
        return tuple(key for key in self.resources if key.namespace == namespace)
