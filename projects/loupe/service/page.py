"""The page and what it loads: files of the package, each under one fixed path."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Response

router = APIRouter(include_in_schema=False)

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/picture.js": ("picture.js", "text/javascript; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),
}


def _serve(path: str, name: str, media: str) -> None:
    content = files("loupe.service").joinpath("static", name).read_bytes()

    @router.get(path)
    async def serve() -> Response:
        return Response(content, media_type=media)


for _path, (_name, _media) in _FILES.items():
    _serve(_path, _name, _media)
