"""What a ModelService becomes: one document, versions pinned, limits as numbers."""

import pytest

from makers import make_model_service, make_resolve_settings
from plinth_api.errors import InvalidSpec
from plinth_api.resolve import referenced_aliases, resolve_serve_run
from plinth_api.run import ServeCandidate, ServeLimits, ServeModel


def test_service():
    service = make_model_service(scaling={"maxReplicas": 3}, compute={"perReplica": {"cpus": "2500m", "gpus": 1}})
    assert referenced_aliases(service, "a.") == ("models:/a.tiny-chat@champion",)
    run = resolve_serve_run(
        service,
        make_resolve_settings(registry_prefix="a."),
        {"models:/a.tiny-chat@champion": "models:/a.tiny-chat/2"},
    )
    assert run.to_wire() == {
        "version": 1,
        "name": "tiny",
        "engine": "torch",
        "task": "auto",
        "model": {
            "uri": "models:/a.tiny-chat/2",
            "adapters": [],
            "limits": {"maxBodyBytes": 4 * 2**20, "requestTimeoutSeconds": 600},
            "aliases": {"tiny": "champion"},
        },
        "trackingUri": "http://mlflow",
        "gpus": 1,
        "cpus": 2.5,
        "scaling": {"minReplicas": 1, "maxReplicas": 3, "targetOngoingRequests": 16, "idleSeconds": 300},
        "workDir": "/work",
    }


def test_adapters_of_a_service_are_pinned_to_their_versions():
    adapters = [{"name": "docs", "uri": "models:/docs@champion"}, {"name": "tests", "uri": "pvc://adapters/tests"}]
    service = make_model_service(model={"uri": "models:/tiny/1"}, adapters=adapters)
    assert referenced_aliases(service, "a.") == ("models:/a.docs@champion",)
    settings = make_resolve_settings(registry_prefix="a.")
    run = resolve_serve_run(service, settings, {"models:/a.docs@champion": "models:/a.docs/4"})
    assert [(one.name, one.uri) for one in run.model.adapters] == [
        ("docs", "models:/a.docs/4"),
        ("tests", "pvc://adapters/tests"),
    ]
    # The model is pinned by its user, and says nothing of an alias.
    assert run.model.aliases == {"docs": "champion"}


def test_claims_stay_as_users_write_them_until_the_document_is_mounted_for_replicas():
    settings = make_resolve_settings(volume_root="/volumes")
    # Who writes the path of a claim means what pvc:// means, and replicas say it in one way.
    adapters = [{"name": "docs", "uri": "file:///volumes/adapters/docs"}, {"name": "tests", "uri": "models:/tests/1"}]
    run = resolve_serve_run(make_model_service(model={"uri": "pvc://models/a"}, adapters=adapters), settings, {})
    assert uris_of(run.model) == ["pvc://models/a", "pvc://adapters/docs", "models:/tests/1"]
    tried = run.model.model_copy(update={"candidate": ServeCandidate(uri="pvc://models/b", weight=10)})
    mounted = run.model_copy(update={"model": tried}).mounted(settings.volume_root)
    assert uris_of(mounted.model) == [
        "file:///volumes/models/a",
        "file:///volumes/adapters/docs",
        "models:/tests/1",
        "file:///volumes/models/b",
    ]


def uris_of(model: ServeModel) -> list[str]:
    return [one.uri for one in (model, *model.adapters, model.candidate) if one is not None]


def test_an_adapter_has_not_the_name_of_its_service():
    service = make_model_service(model={"uri": "models:/tiny/1"}, adapters=[{"name": "tiny", "uri": "models:/docs/1"}])
    with pytest.raises(InvalidSpec, match=r"spec\.adapters\[0\]\.name: tiny is the name of the service"):
        resolve_serve_run(service, make_resolve_settings(), {})


def test_limits_of_a_service_are_numbers_and_the_same_where_none_are_given():
    def limits_of(**changes):
        return resolve_serve_run(
            make_model_service(model={"uri": "models:/tiny/1"}, **changes), make_resolve_settings(), {}
        ).model.limits

    assert limits_of() == ServeLimits()
    assert limits_of(limits={"maxBodyBytes": "2k"}).max_body_bytes == 2000
    assert limits_of(limits={"maxBodyBytes": 2048}).max_body_bytes == 2048
    given = {"maxPromptTokens": 1, "maxOutputTokens": 2, "requestTimeoutSeconds": 3}
    assert limits_of(limits=given).to_wire() == {"maxBodyBytes": 4194304, **given}
