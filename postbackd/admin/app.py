# SPDX-License-Identifier: MIT
"""The admin app: health, statistics and the dashboard's files, as a Falcon app that bjoern serves.

No handler waits for anything: what it tells was seen by the observer's threads. See docs/admin.md for the paths.
"""

import hashlib
import mimetypes
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import falcon
import msgspec

from postbackd.admin.door import Door
from postbackd.admin.history import RANGES_S
from postbackd.admin.metrics import CONTENT_TYPE, Metrics
from postbackd.admin.observer import Observer
from postbackd.admin.profile import CpuProfiles
from postbackd.admin.profile_pages import CpuProfile, CpuProfileResult, Profile
from postbackd.settings import Admin

STATIC = Path(__file__).parent / "static"
INDEX = "index.html"
TITLES = {404: ("not_found", "Nothing is at this path."), 405: ("method_not_allowed", "Allow lists what it takes.")}


class _Health:
    """GET /health: the admin process runs and answers."""

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        resp.data = b'{"status":"ok"}'

    on_head = on_get


class _Ready:
    """GET /ready: the daemon does its work; 503 with the reasons when something of it is missing."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        reasons = self._observer.reasons()
        resp.status = 503 if reasons else 200
        resp.data = msgspec.json.encode({"ready": not reasons, "reasons": reasons})

    on_head = on_get


class _Stats:
    """GET /stats: everything in figures."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        resp.data = msgspec.json.encode(self._observer.stats())

    on_head = on_get


class _History:
    """GET /history?range=15m|1h|6h: what was."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        name = req.get_param("range", default="15m")
        if name not in RANGES_S:
            raise falcon.HTTPBadRequest(title="invalid_range", description=f"range is one of {', '.join(RANGES_S)}.")
        step_s, points = self._observer.history.points(name)
        resp.data = msgspec.json.encode({"step_s": step_s, "points": points})

    on_head = on_get


class _Metrics:
    """GET /metrics: for Prometheus."""

    def __init__(self, observer: Observer) -> None:
        self._metrics = Metrics(observer)

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = CONTENT_TYPE
        resp.data = self._metrics.text()

    on_head = on_get


class _File:
    """A file of the dashboard, read once."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        self._type = f"{kind}; charset=utf-8" if kind.startswith("text/") or kind.endswith("javascript") else kind
        self._etag = hashlib.blake2b(self._data, digest_size=12).hexdigest()

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.set_header("Cache-Control", "no-cache")  # asked for anew each time, and sent only when it changed
        resp.set_header("ETag", f'"{self._etag}"')
        if self._etag in (req.get_header("If-None-Match") or ""):
            resp.status = 304
            return
        resp.content_type = self._type
        resp.data = self._data

    on_head = on_get


def _write_error(_req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError) -> None:
    """Every refusal in the form that all our errors have."""
    code, message = error.title or "", error.description or ""
    if not code.replace("_", "").isalpha():  # Falcon's own, as "404 Not Found"
        code, message = TITLES.get(error.status_code, ("bad_request", message or code))
    resp.data = msgspec.json.encode({"error": {"code": code, "message": message}})
    resp.content_type = "application/json"


class AdminApp(falcon.App):  # type: ignore[type-arg]
    """Falcon, counting what it was asked: the proof that its process moves."""

    requests = 0

    def __call__(self, env: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests += 1
        return super().__call__(env, start_response)


def create_app(observer: Observer, settings: Admin) -> AdminApp:
    """The app that the admin process serves."""
    files = {f"/static/{path.name}": path for path in sorted(STATIC.iterdir()) if path.is_file()}
    if (STATIC / INDEX).exists():
        files["/"] = STATIC / INDEX
    app = AdminApp(middleware=[Door(settings, ["/health", *files])])
    app.set_error_serializer(_write_error)
    app.add_route("/health", _Health())
    app.add_route("/ready", _Ready(observer))
    app.add_route("/stats", _Stats(observer))
    profiles = CpuProfiles(observer.settings.data_dir)
    app.add_route("/profile", Profile(observer.process_table))
    app.add_route("/profile/cpu", CpuProfile(profiles))
    app.add_route("/profile/cpu/{sample_id}", CpuProfileResult(profiles))
    app.add_route("/metrics", _Metrics(observer))
    app.add_route("/history", _History(observer))
    for path, file in files.items():
        app.add_route(path, _File(file))
    return app
