"""No resource that an API server could hold keeps the operator from a plan: older, newer, or written by hand."""

import copy
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from makers import DOCUMENT_MAKERS, Document
from plinth_api.errors import InvalidSpec
from plinth_operator.facts import ClaimFacts, Observed, RayJobFacts, RunFacts
from plinth_operator.plan.jobs import plan_job
from plinth_operator.plan.raycluster import build_ray_cluster_spec
from plinth_operator.plan.services import plan_service
from rendering import SETTINGS, UID, make

T0 = datetime(2026, 1, 1, tzinfo=UTC)
CLAIM = ClaimFacts("PersistentVolumeClaim", "team-a", "plinth", "c", "", 1, access_modes=("ReadWriteMany",))
RUN = RunFacts("r1", "1", status="RUNNING", read_at=T0)
RAY_JOB = RayJobFacts("RayJob", "team-a", "tiny-abcde-1", "j1", UID, 1, attempt=1, created_at=T0, started_at=T0)
STATUS: Document = {
    "phase": "Training",
    "reason": "",
    "observedGeneration": 1,
    "attempts": [
        {"number": 1, "rayJob": "tiny-abcde-1", "startedAt": "2026-01-01T00:00:00Z", "finishedAt": None, "outcome": "X"}
    ],
    "progress": {"step": 3, "loss": 1.0},
    "conditions": [{"type": "A", "status": "True", "reason": "r", "message": "", "lastTransitionTime": "2026-01-01"}],
    "usage": {"gpus": 1},
    "model": {"name": "a", "version": "1", "uri": "models:/a/1"},
}

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["x", "", "ray", "pvc://c/x", "models:/a@b", "Suspended", "2026-01-01T00:00:00Z"]),
)
POD_FIELDS = ("metadata", "spec", "containers", "name", "env", "volumes", "labels", "resources", "ports", "$patch", "a")
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(POD_FIELDS), inner)),
    max_leaves=8,
)
CONTAINERS = st.lists(st.dictionaries(st.sampled_from(["name", "env", "resources", "ports"]), JSON), max_size=3)
POD_SPECS = st.fixed_dictionaries({}, optional={"containers": CONTAINERS | JSON, "volumes": JSON})
POD_TEMPLATES = st.fixed_dictionaries({}, optional={"metadata": JSON, "spec": POD_SPECS | JSON})

# The same examples at each run: this is a net below the tests by name, not a search.
SAME_EACH_TIME = settings(
    derandomize=True, deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow], database=None
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every object or list inside, with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


@SAME_EACH_TIME
@given(st.data())
def test_every_resource_gets_a_plan_with_a_status(data: st.DataObject):
    kind = data.draw(st.sampled_from(sorted(DOCUMENT_MAKERS)))
    document = DOCUMENT_MAKERS[kind](namespace="team-a", uid=UID)
    document["metadata"]["generation"] = 1
    document["status"] = copy.deepcopy(STATUS) if data.draw(st.booleans()) else {}
    for _ in range(data.draw(st.integers(1, 3))):
        where, key = data.draw(st.sampled_from([*places(document["spec"]), *places(document["status"])]))
        where[key] = data.draw(JSON)
    seen = Observed(
        claims={"plinth": CLAIM},
        run=data.draw(st.sampled_from([RUN, None])),
        ray_jobs=data.draw(st.sampled_from([(), (RAY_JOB,)])),
    )
    plan = plan_service if kind == "ModelService" else plan_job
    found = plan(document, seen, settings=SETTINGS, now=T0)
    assert found.status["phase"]
    assert json.loads(json.dumps(found.status)) == found.status


@SAME_EACH_TIME
@given(st.sampled_from(["PretrainJob", "ModelService"]), POD_TEMPLATES)
def test_every_pod_template_is_merged_or_refused_with_its_path(kind: str, template: Document):
    resource = make(kind, compute={"podTemplate": template})
    try:
        cluster = build_ray_cluster_spec(resource, settings=SETTINGS, attempt=1)
    except InvalidSpec as error:
        told = [problem.path for problem in error.problems]
    else:
        told = [cluster["headGroupSpec"]["template"]["metadata"]["labels"]["plinth.dev/uid"]]
    assert told
    assert all(one == UID or one.startswith("spec.compute.podTemplate") for one in told)
