"""Who may ask: the API keys in a folder, one a file, as Kubernetes mounts a Secret; read again as they change.

Enters: the Authorization header of a request. Leaves: whether it has one of the keys. An empty or missing folder lets
nobody in: a Secret that is not there yet must not open a service.
"""

import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from plinth_workloads.serving.api_errors import wrong_key
from plinth_workloads.serving.clients import CLIENT, client_of_key

logger = logging.getLogger(__name__)

_READ_AGAIN_SECONDS = 5.0
_SCHEME = "bearer "


class ApiKeys:
    """The keys of one service. For one event loop."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the folder, which may come later, and a clock in seconds."""
        self._folder = folder
        self._clock = clock
        self._keys: tuple[bytes, ...] = ()
        self._read_at = float("-inf")

    def __len__(self) -> int:
        """How many keys there are now."""
        self._read()
        return len(self._keys)

    def allow(self, authorization: str) -> bool:
        """Whether a header has one of the keys; takes as long for a wrong key as for a right one.

        Args:
            authorization: The value of the header, "Bearer KEY"; empty where there is none.
        """
        self._read()
        given = authorization[len(_SCHEME) :].strip().encode() if authorization.lower().startswith(_SCHEME) else b""
        # A list: `any` over a generator would stop at the first that fits.
        return any([hmac.compare_digest(given, key) for key in self._keys])

    def _read(self) -> None:
        if self._clock() < self._read_at + _READ_AGAIN_SECONDS:
            return
        self._read_at = self._clock()
        try:
            # What begins with two dots is the kubelet's own.
            files = [path for path in self._folder.iterdir() if path.is_file() and not path.name.startswith("..")]
            keys = tuple(key for path in sorted(files) if (key := path.read_bytes().strip()))
        except FileNotFoundError:
            keys = ()
        if len(keys) != len(self._keys):
            logger.info("%d API keys in %s", len(keys), self._folder)
        self._keys = keys


class RequireKey:
    """ASGI middleware that answers 401 before anything of a request's body is read."""

    def __init__(self, app: ASGIApp, *, keys: ApiKeys, open_paths: frozenset[str]) -> None:
        """Take the application, the keys, and the paths that need none."""
        self._app, self._keys, self._open_paths = app, keys, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] in ("http", "websocket") and scope["path"] not in self._open_paths:
            authorization = Headers(scope=scope).get("Authorization", "")
            if not self._keys.allow(authorization):
                await wrong_key().to_response()(scope, receive, send)
                return
            scope.setdefault("state", {})[CLIENT] = client_of_key(authorization)
        await self._app(scope, receive, send)
