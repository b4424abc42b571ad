"""What a ModelService becomes: one document, versions pinned, limits as numbers."""

import pytest

from makers import make_model_service, make_resolve_settings
from plinth_api.errors import InvalidSpec
from plinth_api.resolve import referenced_aliases, resolve_serve_run
from plinth_api.run import ServeLimits


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
        ("tests", f"file://{settings.volume_root}/adapters/tests"),
    ]


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
