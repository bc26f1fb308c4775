# SPDX-License-Identifier: MIT
"""The paths of /profile, for app.py."""

import falcon
import msgspec

from postbackd.admin.profile import CpuProfiles, ProcessTable, ProfileError, collapsed, speedscope

FORMATS = ("collapsed", "speedscope", "json")
DEFAULT_SECONDS = 5.0


def _refuse(error: ProfileError) -> falcon.HTTPError:
    return falcon.HTTPError(error.status, title=error.code, description=error.message)


class Profile:
    """GET /profile: every process of the daemon."""

    def __init__(self, table: ProcessTable) -> None:
        self._table = table

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        resp.data = msgspec.json.encode({"processes": self._table.rows()})

    on_head = on_get


class CpuProfile:
    """GET or POST /profile/cpu?worker=…&seconds=…: 202, and where the result will be."""

    def __init__(self, profiles: CpuProfiles) -> None:
        self._profiles = profiles

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        try:
            seconds = float(req.get_param("seconds", default=str(DEFAULT_SECONDS)))
        except ValueError:
            seconds = -1.0
        try:
            sample_id = self._profiles.start(req.get_param("worker", default=""), seconds)
        except ProfileError as error:
            raise _refuse(error) from None
        path = f"/profile/cpu/{sample_id}"
        resp.status = 202
        resp.set_header("Location", path)
        resp.data = msgspec.json.encode(
            {"id": sample_id, "status": "running", "seconds": seconds, "result": path, "formats": FORMATS}
        )

    on_post = on_get


class CpuProfileResult:
    """GET /profile/cpu/<id>?format=collapsed|speedscope|json: 202 until it is there."""

    def __init__(self, profiles: CpuProfiles) -> None:
        self._profiles = profiles

    def on_get(self, req: falcon.Request, resp: falcon.Response, sample_id: str) -> None:
        form = req.get_param("format", default=FORMATS[0])
        if form not in FORMATS:
            raise falcon.HTTPBadRequest(title="invalid_format", description=f"format is one of {', '.join(FORMATS)}.")
        try:
            result = self._profiles.result(sample_id)
        except ProfileError as error:
            raise _refuse(error) from None
        if result is None:
            resp.status = 202
            resp.set_header("Retry-After", "1")
            resp.data = msgspec.json.encode({"id": sample_id, "status": "running"})
        elif form == "collapsed":
            resp.content_type = "text/plain; charset=utf-8"
            resp.data = collapsed(result).encode()
        else:
            resp.data = msgspec.json.encode(speedscope(result) if form == "speedscope" else result)

    on_head = on_get
