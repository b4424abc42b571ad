"""The page at `/`, on which people try a model in a browser: chat, completions, labels or similarity.

Enters: GET of browsers. Leaves: the files of `page/`, static and the same for everybody, so they need no key; what they
then ask the API does. Their policy lets them run nothing but these files and talk to nothing but this service.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import Response

_FOLDER = Path(__file__).parent / "page"
_INDEX = "index.html"

_MEDIA_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}

_POLICY = (
    "default-src 'none'",
    "connect-src 'self'",
    "img-src 'self'",
    "script-src 'self'",
    "style-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    # A model's output that some later change hands to innerHTML raises there instead of becoming HTML.
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)

_HEADERS = {
    # With another version of the service comes another page.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "; ".join(_POLICY),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_FILES = {
    "/" if path.name == _INDEX else f"/{_FOLDER.name}/{path.name}": path
    for path in sorted(_FOLDER.iterdir())
    if path.suffix in _MEDIA_TYPES
}

PAGE_PATHS = frozenset(_FILES)


def add_chat_page(app: FastAPI) -> None:
    """Answer on `PAGE_PATHS`."""
    for path, file in _FILES.items():
        app.add_route(path, _serving(file.read_bytes(), _MEDIA_TYPES[file.suffix]))


def _serving(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    return serve
