# SPDX-License-Identifier: MIT
"""A worker's endpoints: each record compiled once, with all that its postbacks have in common made ready."""

from collections.abc import Sequence

import msgspec

from postbackd.codec import CodecError, decode_record, format_id
from postbackd.delivery.curl_options import Profile
from postbackd.delivery.names import address_name
from postbackd.delivery.outcome import ANY_2XX
from postbackd.outgoing import OutgoingError, check_record, check_scheme
from postbackd.settings import Settings
from postbackd.signing import SigningKeys
from postbackd.statuses import parse_statuses
from postbackd.tally import method_index
from postbackd.template import CompiledEndpoint, Rendered
from postbackd.template_syntax import TemplateError
from postbackd.url import UrlError

MAX_ENDPOINTS = 16_384  # kept compiled; the oldest goes first


class Endpoint:
    """A compiled endpoint, or the fault of a record that cannot be compiled (`compiled` is None then)."""

    __slots__ = (
        "_keys",
        "_settings",
        "compiled",
        "constant_profile",
        "fault",
        "fault_reason",
        "host_json",
        "host_key",
        "id_json",
        "is_at_address",
        "line_format",
        "method_index",
        "method_json",
        "missing_key",
        "needed",
        "successes",
    )

    def __init__(self, endpoint_id: bytes, record: bytes, settings: Settings, keys: SigningKeys) -> None:
        self._settings = settings
        self._keys = keys
        self.constant_profile: Profile | None = None  # None where a header or the host varies
        self.missing_key: str | None = None  # why it cannot be signed now
        self.is_at_address = False  # its host is an address as it is written: nothing to look up
        self.line_format = b""  # of a delivered line; the recorder's
        self.successes = ANY_2XX
        self.needed: bytes | None = None  # what the body of a success holds
        self.compiled: CompiledEndpoint | None = None
        self.fault = ""
        self.fault_reason = ""  # of the death of its postbacks
        self.id_json = b'"%b"' % endpoint_id.hex().encode()  # as the delivery log has it
        self.method_json = b"null"
        self.host_key = ""  # empty where the host is a placeholder
        self.method_index = 0  # of the tally
        self.host_json = b""  # empty where the host is a placeholder
        try:
            decoded = decode_record(record)
            check_record(decoded)
            compiled = CompiledEndpoint(decoded, allow_host=settings.template.allow_host)
            check_scheme(compiled.scheme, settings.security.schemes)
            if (rule := compiled.record.success) is not None:
                self.successes = ANY_2XX if rule.status is None else parse_statuses(rule.status)
                self.needed = None if rule.body_contains is None else rule.body_contains.encode()
        except (UrlError, OutgoingError) as error:  # none that ingest takes: forged, or forbidden by now
            self.fault, self.fault_reason = str(error), "blocked"
            return
        except (CodecError, TemplateError, ValueError) as error:
            self.fault, self.fault_reason = str(error), "render_error"
            return
        self.compiled = compiled
        self.method_json = msgspec.json.encode(compiled.record.method)
        self.host_key = compiled.host_key
        self.method_index = method_index(compiled.record.method)
        if compiled.host_key:
            self.host_json = msgspec.json.encode(compiled.host_key)
            self.is_at_address = address_name(compiled.host_key) is None
        if compiled.record.sign is not None and compiled.record.sign not in keys:
            self.missing_key = (
                f"this worker's security.signing_keys has no {compiled.record.sign!r}, and unsigned it is not sent: "
                "add the key, or give the postbacks up by postbackd dead"
            )
        if compiled.has_constant_headers and compiled.host_key and compiled.record.sign is None:
            self.constant_profile = self._make_profile(compiled, compiled.host_key, compiled.constant_headers)

    def profile(self, rendered: Rendered, postback_id: int, now_ms: int) -> Profile:
        """What libcurl is told beside URL and body, where that varies from postback to postback or from attempt to
        attempt, as a signature does: it has the time of the attempt, `now_ms`, and the id that never changes."""
        assert self.compiled is not None
        headers, key = rendered.headers, self.compiled.record.sign
        if key is not None:
            signature = self._keys.headers(key, format_id(postback_id), now_ms // 1000, rendered.body)
            headers = [*headers, *signature]
        return self._make_profile(self.compiled, rendered.host_key, headers)

    def _make_profile(self, compiled: CompiledEndpoint, host_key: str, headers: Sequence[bytes]) -> Profile:
        record, settings = compiled.record, self._settings
        host = settings.hosts.get(host_key)
        timeout_s = settings.delivery.timeout
        if record.timeout is not None:
            timeout_s = record.timeout
        elif host is not None and host.timeout is not None:
            timeout_s = host.timeout
        connect_s = settings.delivery.connect_timeout
        if host is not None and host.connect_timeout is not None:
            connect_s = host.connect_timeout
        sends_body = record.body != "none"
        return Profile(record.method, headers, sends_body, int(timeout_s * 1000), int(connect_s * 1000))


class Endpoints:
    """Compiled endpoints by id."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys = SigningKeys(settings.security.signing_keys)
        self._endpoints: dict[bytes, Endpoint] = {}
        self._ids: dict[str, set[bytes]] = {}  # by host
        self.get = self._endpoints.get

    def add(self, endpoint_id: bytes, record: bytes) -> None:
        """Compile a record and keep it."""
        if len(self._endpoints) >= MAX_ENDPOINTS:
            oldest = next(iter(self._endpoints))
            self._ids[self._endpoints.pop(oldest).host_key].discard(oldest)
        endpoint = self._endpoints[endpoint_id] = Endpoint(endpoint_id, record, self._settings, self._keys)
        self._ids.setdefault(endpoint.host_key, set()).add(endpoint_id)

    def ids_of(self, host_key: str) -> list[bytes]:
        """The endpoints of a host; none for one that only a placeholder names."""
        return list(self._ids.get(host_key, ())) if host_key else []
