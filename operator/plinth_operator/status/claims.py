"""PersistentVolumeClaim: from the manifest to facts."""

from plinth_operator.facts import ClaimFacts, Manifest
from plinth_operator.status.objects import shared_fields
from plinth_operator.status.reading import section, text


def facts_from_claim(manifest: Manifest) -> ClaimFacts:
    """Phase of a claim, and how it may be mounted: what it is bound to where that is known, else what it asks for."""
    modes = section(manifest, "status").get("accessModes") or section(manifest, "spec").get("accessModes") or ()
    return ClaimFacts(
        **shared_fields(manifest),
        phase=text(manifest, "status", "phase"),
        access_modes=tuple(str(mode) for mode in modes),
    )
