"""The web page: the built files of web/dist, held in memory, so that no path of a request touches the file system."""

from __future__ import annotations

from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from .failures import HTTPFailure

TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "ico": "image/x-icon",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "png": "image/png",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
    "woff2": "font/woff2",
}
POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def files() -> dict[str, tuple[bytes, str]]:
    """Name to (bytes, media type) of every file of the page; empty where it was not built."""
    folder = resources.files(__package__ or "") / "web" / "dist"
    found: dict[str, tuple[bytes, str]] = {}
    if folder.is_dir():
        for file in folder.iterdir():
            kind = TYPES.get(file.name.rpartition(".")[2])
            if kind and file.is_file():
                found[file.name] = (file.read_bytes(), kind)
    return found


async def page(request: Request) -> Response:
    found = request.app.state.page
    name = request.path_params.get("file") or "index.html"
    if name not in found:
        raise HTTPFailure(404, "not_found_error", f"there is nothing at {request.url.path[:100]!r}")
    content, kind = found[name]
    return Response(content, media_type=kind, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"})
