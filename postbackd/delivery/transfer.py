# SPDX-License-Identifier: MIT
"""Transfers: many HTTP requests at once in one thread, by libcurl's multi interface.

In: requests with a tag. Out: results with the same tag; curl's codes end here. `poll` is the worker's only wait: the
Redis connections and the resolver stand in the same epoll.

Why perform() and an epoll of our own: `multi.select()` and `fdset` stop at descriptor 1024, and `socket_action` with
its callbacks costs 35 to 60 µs a delivery where perform() costs 23. So every socket libcurl opens is registered once,
edge-triggered, for everything (OPENSOCKETFUNCTION), and whatever fires, perform() looks after all. No limit on
descriptors, no call into Python per event.
"""

import errno
import select
import socket
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec
import pycurl

from postbackd.codec import ErrorClass
from postbackd.delivery.curl_options import CurlOptions, Profile, RequestOptions

Tag = TypeVar("Tag")

LONGEST_WAIT_MS = 50  # should an edge ever be missed, it is made up for after this
CONNECTIONS_PER_TRANSFER = 4  # of the cache: hosts take turns, and each turn should find its connection open
EPOLL_EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET

_RESPONSE_CODE, _NUM_CONNECTS, _PRIMARY_IP = pycurl.RESPONSE_CODE, pycurl.NUM_CONNECTS, pycurl.PRIMARY_IP
_STARTTRANSFER_TIME, _TOTAL_TIME = pycurl.STARTTRANSFER_TIME, pycurl.TOTAL_TIME
_TLS_CODES = frozenset({35, 51, 53, 54, 58, 59, 60, 64, 66, 77, 80, 82, 83, 90, 91, 98})
_BROKEN_CODES = frozenset({pycurl.E_GOT_NOTHING, pycurl.E_SEND_ERROR, pycurl.E_RECV_ERROR})
_UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM})


class Result(msgspec.Struct, frozen=True, gc=False):  # 0.15 µs to make where a NamedTuple takes 0.4
    """How a transfer ended. Times are ms since its start, at the end of each phase: 0 where a connection was reused."""

    error: ErrorClass | None  # of the transfer itself: an answer of any status is none
    error_detail: str | None
    status: int | None
    body: bytes
    truncated: bool
    remote_ip: str | None  # None when there was no connection; all times are 0 then
    reused: bool
    ttfb_ms: float
    total_ms: float
    dns_ms: float = 0.0
    connect_ms: float = 0.0
    tls_ms: float = 0.0
    retry_after_s: int = 0


class _Slot(Generic[Tag]):
    """A handle with what belongs to its present request. libcurl calls its methods in the order they stand in."""

    def __init__(self, owner: "Transfers[Tag]") -> None:
        self._owner = owner
        self.handle = pycurl.Curl()
        self.handle.slot = self
        self.tag: Tag | None = None
        self.blocked: str | None = None
        self.body: list[bytes] = []
        self.body_bytes = 0
        self.truncated = False
        self.options = RequestOptions(self.handle, self._set_up)

    def _set_up(self) -> None:
        self._owner.options.apply_common(self.handle)
        self.handle.setopt(pycurl.OPENSOCKETFUNCTION, self.open_socket)
        self.handle.setopt(pycurl.WRITEFUNCTION, self.write)

    def open_socket(self, _purpose: int, address: Any) -> Any:
        """libcurl wants to connect: the last look at the address, after every look-up and rebinding."""
        reason = self._owner.verdict(address.addr[0] if isinstance(address.addr, tuple) else str(address.addr))
        if reason is not None:
            self.blocked = reason
            return pycurl.SOCKET_BAD
        opened = socket.socket(address.family, address.socktype | socket.SOCK_CLOEXEC, address.protocol)
        opened.setblocking(False)
        # pycurl gives libcurl a dup() and drops this object. The registration lives as long as the connection,
        # which is the open file description that both share, and goes with libcurl's close().
        self._owner.epoll.register(opened.fileno(), EPOLL_EDGES)
        return opened

    def write(self, data: bytes) -> int | None:
        """A piece of the body came. Past the limit the transfer is cut short, and judged by its status."""
        room = self._owner.max_response_bytes - self.body_bytes
        if len(data) > room:
            self.body.append(data[:room])
            self.truncated = True
            return -1
        self.body.append(data)
        self.body_bytes += len(data)
        return None


class Transfers(Generic[Tag]):
    """All transfers of one worker."""

    def __init__(
        self,
        max_in_flight: int,
        max_response_bytes: int,
        options: CurlOptions,
        verdict: Callable[[str], str | None],
    ) -> None:
        """`verdict` says of an address why it must not be connected to, or None."""
        self.options = options
        self.verdict = verdict
        self.max_response_bytes = max_response_bytes
        self.epoll = select.epoll()
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, CONNECTIONS_PER_TRANSFER * max_in_flight)
        self._free: list[_Slot[Tag]] = []
        self._watched: set[int] = set()
        self._started = False
        self.in_flight = 0
        self.ready: set[int] = set()  # watched descriptors that the last poll found readable

    def watch(self, descriptor: int) -> None:
        """Have `poll` return when the descriptor is readable (level-triggered), until it is closed.

        Closing it is enough: the kernel forgets it then. Its number may stand for another one later, so `ready` says
        where to look, not what is there.
        """
        self._watched.add(descriptor)
        self.epoll.register(descriptor, select.EPOLLIN)

    def start(self, tag: Tag, profile: Profile, url: str, body: bytes | None, resolve: str | None = None) -> None:
        """Start a transfer; its result comes from a later `poll`. `resolve` is a CURLOPT_RESOLVE entry that libcurl
        has not been told yet."""
        slot = self._free.pop() if self._free else _Slot(self)
        slot.tag = tag
        slot.options.apply(profile, url, body, resolve)
        self._multi.add_handle(slot.handle)
        self.in_flight += 1
        self._started = True

    def poll(self, timeout_ms: int) -> list[tuple[Tag, Result]]:
        """Wait for something to happen, at most `timeout_ms`, and return the transfers that have ended."""
        wait_ms = self._wait_ms(timeout_ms)
        self.ready.clear()
        for descriptor, _ in self.epoll.poll(wait_ms / 1000):
            if descriptor in self._watched:
                self.ready.add(descriptor)
        if not self.in_flight:
            return []
        self._started = False
        self._multi.perform()
        return self._collect()

    def _wait_ms(self, timeout_ms: int) -> int:
        if self._started:
            return 0
        if not self.in_flight:
            return timeout_ms
        curl_ms = self._multi.timeout()
        longest_ms = min(timeout_ms, LONGEST_WAIT_MS)
        return longest_ms if curl_ms < 0 else min(curl_ms, longest_ms)

    def _collect(self) -> list[tuple[Tag, Result]]:
        results: list[tuple[Tag, Result]] = []
        while True:
            left, succeeded, failed = self._multi.info_read()
            results += [self._end(handle.slot, 0, "") for handle in succeeded]
            results += [self._end(handle.slot, code, text) for handle, code, text in failed]
            if not left:
                return results

    def _end(self, slot: _Slot[Tag], code: int, text: str) -> tuple[Tag, Result]:
        result = _result(slot, code, text)
        tag = slot.tag
        slot.tag = None
        if slot.body:
            slot.body = []
            slot.body_bytes = 0
        slot.blocked = None  # one of two addresses may have been, and the other answered
        if code:
            slot.truncated = False
        self._multi.remove_handle(slot.handle)
        self.in_flight -= 1
        self._free.append(slot)
        return tag, result  # type: ignore[return-value]  # a slot in flight has its tag


def _result(slot: _Slot[Any], code: int, text: str) -> Result:
    info = slot.handle.getinfo
    status = info(_RESPONSE_CODE) or None
    body = slot.body
    data = body[0] if len(body) == 1 else b"".join(body)
    ttfb_ms, total_ms = info(_STARTTRANSFER_TIME) * 1000, info(_TOTAL_TIME) * 1000
    if not code and not info(_NUM_CONNECTS) and status not in (429, 503):  # the busy path; 4 getinfo less
        return Result(None, None, status, data, False, info(_PRIMARY_IP), True, ttfb_ms, total_ms)
    error, detail = None, None
    if code and not (code == pycurl.E_WRITE_ERROR and slot.truncated):
        error, detail = _classify(slot, code, text)
    connect_ms = info(pycurl.CONNECT_TIME) * 1000
    # A connection in use again took no time to connect: the request went out on it all the same.
    if status is None and not connect_ms and not info(pycurl.REQUEST_SIZE):
        return Result(error, detail, None, b"", False, None, False, 0.0, 0.0)
    return Result(
        error,
        detail,
        status,
        data,
        slot.truncated,
        info(_PRIMARY_IP) or None,
        info(_NUM_CONNECTS) == 0,
        ttfb_ms,
        total_ms,
        info(pycurl.NAMELOOKUP_TIME) * 1000,
        connect_ms,
        info(pycurl.APPCONNECT_TIME) * 1000,
        info(pycurl.RETRY_AFTER) if status in (429, 503) else 0,
    )


def _classify(slot: _Slot[Any], code: int, text: str) -> tuple[ErrorClass, str]:
    """Our class for a curl code, with libcurl's own words (they name the host, never a header or a body)."""
    detail = text or f"curl error {code}"
    if slot.blocked is not None:
        return ErrorClass.BLOCKED, slot.blocked
    if code == pycurl.E_OPERATION_TIMEDOUT:
        return ErrorClass.TIMEOUT, detail
    if code in (pycurl.E_COULDNT_RESOLVE_HOST, pycurl.E_COULDNT_RESOLVE_PROXY):
        return ErrorClass.DNS_ERROR, detail
    if code in _TLS_CODES:
        return ErrorClass.TLS_ERROR, detail
    if code == pycurl.E_URL_MALFORMAT:  # not E_UNSUPPORTED_PROTOCOL: an answer that is no HTTP is that too
        return ErrorClass.RENDER_ERROR, detail
    number = slot.handle.getinfo(pycurl.OS_ERRNO)
    if number == errno.ECONNREFUSED:
        return ErrorClass.CONNECTION_REFUSED, detail
    if number in (errno.ECONNRESET, errno.EPIPE) or code in _BROKEN_CODES:
        return ErrorClass.CONNECTION_RESET, detail
    if number in _UNREACHABLE:
        return ErrorClass.NETWORK_UNREACHABLE, detail
    if number == errno.ETIMEDOUT:
        return ErrorClass.TIMEOUT, detail
    return ErrorClass.NETWORK_ERROR, detail
