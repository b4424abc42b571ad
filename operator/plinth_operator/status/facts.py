"""From any manifest that the operator watches to its facts."""

from collections.abc import Callable, Mapping

from plinth_operator.facts import Manifest, ObjectFacts
from plinth_operator.status.claims import facts_from_claim
from plinth_operator.status.kueue import facts_from_workload
from plinth_operator.status.objects import object_facts
from plinth_operator.status.pods import facts_from_pod
from plinth_operator.status.raycluster import facts_from_raycluster
from plinth_operator.status.rayjob import facts_from_rayjob
from plinth_operator.status.rayservice import facts_from_rayservice
from plinth_operator.status.reading import text

_READERS: Mapping[str, Callable[[Manifest], ObjectFacts]] = {
    "PersistentVolumeClaim": facts_from_claim,
    "Pod": facts_from_pod,
    "RayCluster": facts_from_raycluster,
    "RayJob": facts_from_rayjob,
    "RayService": facts_from_rayservice,
    "Workload": facts_from_workload,
}


def facts_from(manifest: Manifest) -> ObjectFacts:
    """The facts of a manifest by its kind; of a kind that is not read further, those that every object has."""
    return _READERS.get(text(manifest, "kind"), object_facts)(manifest)
