"""The only module that talks to the API server: create, server-side apply, status, list; with a bound on the rate."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self

from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config.config_exception import ConfigException

from plinth_operator.constants import FIELD_MANAGER, GROUP, VERSION
from plinth_operator.facts import Manifest

_REQUEST_SECONDS = 30.0
_PAGE = 50
"""Objects of a list at a time: parsed, a hundred Ray clusters take more memory than the facts of all of them."""
_CONNECTIONS = 32


class Api(NamedTuple):
    """Where a kind is served."""

    path: str
    plural: str


APIS: Mapping[str, Api] = MappingProxyType(
    {
        "PretrainJob": Api(f"apis/{GROUP}/{VERSION}", "pretrainjobs"),
        "FineTuneJob": Api(f"apis/{GROUP}/{VERSION}", "finetunejobs"),
        "ModelService": Api(f"apis/{GROUP}/{VERSION}", "modelservices"),
        "ConfigMap": Api("api/v1", "configmaps"),
        "Pod": Api("api/v1", "pods"),
        "Service": Api("api/v1", "services"),
        "PersistentVolumeClaim": Api("api/v1", "persistentvolumeclaims"),
        "Event": Api("api/v1", "events"),
        "NetworkPolicy": Api("apis/networking.k8s.io/v1", "networkpolicies"),
        "Ingress": Api("apis/networking.k8s.io/v1", "ingresses"),
        "Lease": Api("apis/coordination.k8s.io/v1", "leases"),
        "RayJob": Api("apis/ray.io/v1", "rayjobs"),
        "RayService": Api("apis/ray.io/v1", "rayservices"),
        "RayCluster": Api("apis/ray.io/v1", "rayclusters"),
        "Workload": Api("apis/kueue.x-k8s.io/v1beta1", "workloads"),
    }
)


class KubeError(Exception):
    """The API server refused, or did not answer (status 0).

    Attributes:
        status: HTTP status.
        reason: The machine-readable reason: AlreadyExists, Conflict, NotFound, Invalid, Forbidden...
        retry_after: Seconds that the server asks to wait, 0 where it does not say.
        details: Paths of fields, each with what is wrong with it; of a refusal for reason Invalid.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        retry_after: float = 0.0,
        details: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.details = details


class _RateLimit:
    """A token bucket: so many requests a second, with a burst of twice as many."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._tokens = self._most = 2 * per_second
        self._updated = time.monotonic()

    async def acquire(self) -> None:
        now = time.monotonic()
        self._tokens = min(self._most, self._tokens + (now - self._updated) * self._per_second)
        self._updated = now
        self._tokens -= 1
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._per_second)


class Kube:
    """A client of one API server; an async context manager."""

    def __init__(self, *, requests_per_second: float) -> None:
        """Bound the rate of requests; the connection is made on entering."""
        self._limit = _RateLimit(requests_per_second)
        self._client: ApiClient | None = None
        self.requests: dict[tuple[str, str, int], int] = {}
        """Number of requests by method, kind and HTTP status, for the metrics; a status subresource counts apart."""

    async def __aenter__(self) -> Self:
        settings = Configuration()
        settings.connection_pool_maxsize = _CONNECTIONS
        try:
            config.load_incluster_config(client_configuration=settings)
        except ConfigException:
            await config.load_kube_config(client_configuration=settings)
        self._client = ApiClient(settings)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._client is not None
        await self._client.close()

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object, None where there is none."""
        try:
            return await self._request("GET", kind, _object_path(kind, namespace, name))
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    async def create(self, manifest: Manifest) -> Manifest:
        """Create an object; KubeError with reason AlreadyExists where it is there."""
        meta = manifest["metadata"]
        path = _list_path(manifest["kind"], meta["namespace"])
        # Without Strict, a field that the kind does not have is dropped without a word.
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        return await self._request("POST", manifest["kind"], path, query, manifest)

    async def replace(self, manifest: Manifest) -> Manifest:
        """Put an object in place of the one with the same resourceVersion; KubeError with reason Conflict otherwise."""
        meta = manifest["metadata"]
        path = _object_path(manifest["kind"], meta["namespace"], meta["name"])
        return await self._request("PUT", manifest["kind"], path, {}, manifest)

    async def apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply with our field manager, which takes over fields that others have set."""
        meta = manifest["metadata"]
        path = _object_path(manifest["kind"], meta["namespace"], meta["name"])
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._request("PATCH", manifest["kind"], path, query, manifest, "application/apply-patch+yaml")

    async def patch_status(
        self, kind: str, namespace: str, name: str, patch: Mapping[str, Any], *, uid: str
    ) -> Manifest:
        """Merge `patch` into the status of the object with this uid; refused for another one of the same name.

        Its answer is the object with the new resourceVersion.
        """
        path = f"{_object_path(kind, namespace, name)}/status"
        query, body = {"fieldManager": FIELD_MANAGER}, {"metadata": {"uid": uid}, "status": patch}
        return await self._request("PATCH", f"{kind}/status", path, query, body, "application/merge-patch+json")

    async def delete(self, kind: str, namespace: str, name: str, *, uid: str) -> None:
        """Delete the object with this uid in the background; one that is gone or another's is left as it is."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            await self._request("DELETE", kind, _object_path(kind, namespace, name), {}, body)
        except KubeError as error:
            if error.status not in (404, 409):
                raise

    async def list(self, kind: str, namespace: str = "", *, label_selector: str = "") -> AsyncIterator[Manifest]:
        """Every object of a kind, in pages; those that lists leave without kind and apiVersion get them."""
        query = {"limit": str(_PAGE), "labelSelector": label_selector}
        while True:
            page = await self._request("GET", kind, _list_path(kind, namespace), query)
            for item in page["items"]:
                yield {**item, "kind": kind}
            token = page["metadata"].get("continue")
            if not token:
                return
            query["continue"] = token

    async def serves(self, kind: str) -> bool:
        """Whether the API server knows the kind now."""
        api = APIS[kind]
        try:
            found = await self._request("GET", "APIResourceList", f"/{api.path}")
        except KubeError as error:
            if error.status == 404:
                return False
            raise
        return any(resource["name"] == api.plural for resource in found["resources"])

    async def _request(
        self,
        method: str,
        counted_as: str,
        path: str,
        query: Mapping[str, str] = MappingProxyType({}),
        body: Any = None,
        content_type: str = "application/json",
    ) -> Manifest:
        assert self._client is not None
        await self._limit.acquire()
        # The generated client's own way of signing: BearerToken from the kubeconfig or the mounted token.
        method, url, headers, payload, _ = await self._client.param_serialize(
            method,
            path,
            query_params=[(key, value) for key, value in query.items() if value],
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        status, text = 0, ""
        try:
            answer = await self._client.call_api(method, url, headers, payload, _request_timeout=_REQUEST_SECONDS)
            status, told = answer.status, answer.headers
            text = (await answer.read() or b"").decode()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise KubeError(0, "Unreachable", f"{type(error).__name__}: {error}") from error
        except Exception as error:
            # aiohttp's own errors, which only this module would otherwise need to import.
            if type(error).__module__.split(".")[0] != "aiohttp":
                raise
            raise KubeError(0, "Unreachable", f"{type(error).__name__}: {error}") from error
        finally:
            counted = (method, counted_as, status)
            self.requests[counted] = self.requests.get(counted, 0) + 1
        if status >= 400:
            raise _refusal(status, text, told)
        document: Manifest = json.loads(text)
        return document


def _refusal(status: int, text: str, headers: Mapping[str, str]) -> KubeError:
    try:
        told = json.loads(text)
    except ValueError:
        told = {}
    wait = headers.get("Retry-After", "")
    causes = (told.get("details") or {}).get("causes") or ()
    return KubeError(
        status,
        told.get("reason") or str(status),
        told.get("message") or text[:200],
        float(wait) if wait.isdigit() else 0.0,
        [(cause.get("field", ""), cause.get("message", "")) for cause in causes],
    )


def _list_path(kind: str, namespace: str) -> str:
    api = APIS[kind]
    return f"/{api.path}/namespaces/{namespace}/{api.plural}" if namespace else f"/{api.path}/{api.plural}"


def _object_path(kind: str, namespace: str, name: str) -> str:
    return f"{_list_path(kind, namespace)}/{name}"
