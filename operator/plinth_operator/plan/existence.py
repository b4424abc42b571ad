"""The gates of existence: what a resource needs that is not there yet. Pure."""

from collections.abc import Iterable, Mapping

from plinth_api.parse import Resource
from plinth_operator.facts import Observed
from plinth_operator.plan.storage import missing_claims
from plinth_operator.settings import Settings
from plinth_operator.status.reasons import Cause


def missing_cause(
    resource: Resource, seen: Observed, aliases: Iterable[str], versions: Mapping[str, str], settings: Settings
) -> Cause | None:
    """What holds a resource back before anything is created for it: KubeRay, a claim, or a model alias.

    Args:
        resource: What the user asks for.
        seen: What is known of its surroundings.
        aliases: The alias URIs that it refers to.
        versions: For those that were looked up: the URI with its version, "" where there is no such alias.
        settings: What the platform team has decided.
    """
    if not seen.kuberay:
        return Cause("KubeRayMissing", "the kinds of ray.io/v1 are not served; install KubeRay 1.5 or newer")
    missing = missing_claims(resource, seen.claims, settings)
    if missing:
        named = ", ".join(missing)
        return Cause("VolumeNotFound", f"the PersistentVolumeClaim {named} does not exist in this namespace; create it")
    for uri in aliases:
        if versions.get(uri) == "":
            return Cause("ModelNotFound", f"{uri} does not exist in the registry; it is looked for again every 10 s")
    return None
