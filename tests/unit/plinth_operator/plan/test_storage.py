from typing import Any

import pytest

from makers import make_fine_tune_job, make_model_service, make_pretrain_job
from plinth_operator.facts import ClaimFacts
from plinth_operator.plan.storage import checkpoint_claim, claims_of, missing_claims, storage_problems
from plinth_operator.settings import Settings

SETTINGS = Settings(storage_claim="default-storage")


def claim(name: str, *access_modes: str) -> ClaimFacts:
    return ClaimFacts(
        kind="PersistentVolumeClaim",
        namespace="team-a",
        name=name,
        uid=name,
        owner_uid="",
        resource_version=1,
        phase="Bound",
        access_modes=access_modes,
    )


def volume(claim_name: str, mount_path: str, **more: Any) -> dict[str, Any]:
    return {"claimName": claim_name, "mountPath": mount_path, **more}


def problems(job: Any, *claims: ClaimFacts) -> list[str]:
    return [str(problem) for problem in storage_problems(job, {one.name: one for one in claims}, SETTINGS)]


def test_a_pretrain_job_needs_the_claims_of_all_its_uris():
    job = make_pretrain_job(
        model={"tokenizer": {"train": None, "uri": "pvc://tokenizers/bpe"}},
        data={
            "train": [{"uri": "pvc://b/x.jsonl"}, {"uri": "pvc://a"}, {"uri": "hf://datasets/org/name"}],
            "validation": {"fraction": None, "sources": [{"uri": "pvc://v/x.jsonl"}]},
        },
        checkpoint={"uri": "pvc://saved/here", "resumeFrom": "pvc://older/there"},
        compute={"volumes": [volume("extra", "/extra"), volume("a", "/again")]},
    )
    assert claims_of(job, SETTINGS) == ("a", "b", "extra", "older", "saved", "tokenizers", "v")
    assert checkpoint_claim(job, SETTINGS) == "saved"


def test_a_job_needs_the_claim_of_its_teacher():
    teacher = {"instruction": None, "distillation": {"teacher": {"uri": "pvc://teachers/large"}}}
    assert claims_of(make_fine_tune_job(task=teacher), SETTINGS) == ("default-storage", "teachers")


def test_a_job_that_names_no_folder_for_checkpoints_needs_the_default_claim():
    job = make_fine_tune_job(model={"uri": "pvc://models/base"})
    assert claims_of(job, SETTINGS) == ("default-storage", "models")
    assert checkpoint_claim(job, SETTINGS) == "default-storage"


def test_a_job_with_checkpoints_in_a_bucket_works_on_the_default_claim():
    job = make_fine_tune_job(checkpoint={"uri": "s3://bucket/x"}, model={"uri": "pvc://models/base"})
    assert claims_of(job, SETTINGS) == ("default-storage", "models")
    assert checkpoint_claim(job, SETTINGS) == "default-storage"


def test_a_service_needs_the_claims_of_its_models():
    service = make_model_service(
        model={"uri": "pvc://models/base"}, adapters=[{"name": "x", "uri": "pvc://adapters/x"}]
    )
    assert claims_of(service, SETTINGS) == ("adapters", "models")
    assert storage_problems(service, {}, SETTINGS) == []


def test_a_service_needs_the_claim_of_the_model_cache_and_a_job_does_not():
    settings = SETTINGS.model_copy(update={"model_cache_claim": "cache"})
    assert missing_claims(make_model_service(), {}, settings) == ("cache",)
    assert "cache" not in claims_of(make_pretrain_job(), settings)


def test_claims_that_are_not_there_are_missing_and_no_problem():
    job = make_pretrain_job(checkpoint={"uri": "pvc://saved/x"}, compute={"workers": 2})
    assert missing_claims(job, {}, SETTINGS) == ("saved",)
    assert missing_claims(job, {"saved": claim("saved", "ReadWriteMany")}, SETTINGS) == ()
    assert problems(job) == []


@pytest.mark.parametrize(
    ("workers", "modes", "problem"),
    [
        (1, ["ReadWriteOnce"], None),
        (1, ["ReadWriteOncePod", "ReadWriteOnce"], None),
        (2, ["ReadWriteMany", "ReadWriteOnce"], None),
        (
            2,
            ["ReadWriteOnce"],
            "spec.checkpoint.uri: 2 workers save to claim saved, whose access modes are ReadWriteOnce; use a claim "
            "with ReadWriteMany, or set spec.compute.workers to 1",
        ),
        (
            2,
            [],
            "spec.checkpoint.uri: 2 workers save to claim saved, whose access modes are none; use a claim with "
            "ReadWriteMany, or set spec.compute.workers to 1",
        ),
        (
            1,
            ["ReadWriteOncePod"],
            "spec.checkpoint.uri: claim saved has the access mode ReadWriteOncePod only, and a job is two pods or "
            "more; use a claim with ReadWriteMany or ReadWriteOnce",
        ),
    ],
)
@pytest.mark.parametrize(
    "where",
    [
        {"checkpoint": {"uri": "pvc://saved/x"}},
        {"checkpoint": {"uri": "file:///saved/x"}, "compute": {"volumes": [volume("saved", "/saved")]}},
    ],
    ids=["pvc", "file on a volume"],
)
def test_several_workers_need_a_claim_that_they_can_share(
    where: dict[str, Any], workers: int, modes: list[str], problem: str | None
):
    job = make_pretrain_job(**{**where, "compute": {**where.get("compute", {}), "workers": workers}})
    assert problems(job, claim("saved", *modes)) == ([problem] if problem else [])


@pytest.mark.parametrize(
    ("compute", "problem"),
    [
        ({}, "/data/saved is a folder of the container on a cluster, and is lost with it"),
        ({"volumes": [volume("a", "/data/sav")]}, "/data/saved is a folder of the container"),
        ({"podTemplate": {"spec": {"hostIPC": True}}}, "/data/saved is a folder of the container"),
        ({"podTemplate": {"spec": "nonsense"}}, "/data/saved is a folder of the container"),
        ({"volumes": [volume("a", "/data/")]}, None),
        ({"volumes": [volume("a", "/data/saved")]}, None),
        ({"volumes": [volume("a", "/")]}, None),
        ({"podTemplate": {"spec": {"volumes": [{"name": "nfs"}]}}}, None),
        (
            {"volumes": [volume("a", "/data"), volume("b", "/data/saved", readOnly=True)]},
            "/data/saved is on claim b, which spec.compute.volumes mounts for reading only; leave readOnly out",
        ),
    ],
)
def test_a_folder_for_checkpoints_must_outlive_the_pod(compute: dict[str, Any], problem: str | None):
    found = problems(make_pretrain_job(checkpoint={"uri": "file:///data/saved"}, compute=compute))
    assert len(found) == (problem is not None)
    assert all(one.startswith(f"spec.checkpoint.uri: {problem}") for one in found)
