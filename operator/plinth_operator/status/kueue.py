"""Workload of Kueue: from the manifest to facts."""

from plinth_operator.facts import Manifest, WorkloadFacts
from plinth_operator.status.objects import owner_name, shared_fields
from plinth_operator.status.reading import condition, is_true, section, text


def facts_from_workload(manifest: Manifest) -> WorkloadFacts:
    """What Kueue says of the RayJob that a Workload stands for."""
    evicted = is_true(manifest, "Evicted")
    return WorkloadFacts(
        **shared_fields(manifest),
        owner_name=owner_name(manifest, "RayJob"),
        # Kueue leaves the admission of an evicted job as it is until KubeRay has stopped it.
        admitted=is_true(manifest, "Admitted") and not evicted,
        evicted=text(condition(manifest, "Evicted"), "reason") if evicted else "",
        inactive=section(manifest, "spec").get("active") is False,
        message=_waits_for(manifest),
    )


def _waits_for(manifest: Manifest) -> str:
    """The words of the first stage that is not passed: quota, admission checks, pods; else those of an eviction."""
    for stage in ("QuotaReserved", "Admitted", "PodsReady"):
        found = condition(manifest, stage)
        if found.get("status") == "False" and found.get("message"):
            return text(found, "message")
    return text(condition(manifest, "Evicted"), "message") if is_true(manifest, "Evicted") else ""
