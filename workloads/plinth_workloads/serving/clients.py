"""Who asks, as far as taking turns goes: a request enters, the name of its client leaves.

The name is a digest that only this process can make, so that no key and no word of a client's is kept or told. It gives
nobody any right.
"""

import os
from hashlib import blake2b

from fastapi import Request

from plinth_workloads.serving.protocol import RequestBody

CLIENT = "client"
"""Under this name a request's state has the name of a client who showed a key."""

_SECRET = os.urandom(16)
_USER_FIELDS = ("safety_identifier", "user")
"""OpenAI's newer and older word for whoever uses a client's own service."""


def client_of_key(authorization: str) -> str:
    """The name of whoever has a key, from the header that shows it."""
    return _named("key", authorization)


def client_of(request: Request, body: RequestBody) -> str:
    """The name of a request's client: whoever has its key, or without keys its address and the user that it tells.

    With keys the user does not count: nobody gets more turns by telling many.
    """
    known: str | None = getattr(request.state, CLIENT, None)
    if known is not None:
        return known
    address = request.client.host if request.client else ""
    told = ((body.model_extra or {}).get(field) for field in _USER_FIELDS)
    return _named("address", address, next((user for user in told if user and isinstance(user, str)), ""))


def _named(*parts: str) -> str:
    return blake2b("\0".join(parts).encode(), digest_size=16, key=_SECRET).hexdigest()
