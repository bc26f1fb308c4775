# SPDX-License-Identifier: MIT
"""Claimed items become deliveries: decoded, not poison, not expired, with their endpoint compiled.

Endpoint records are fetched once and kept compiled: what stands under a digest is the same at every server, and what a
server has forgotten can be delivered all the same. What cannot go on is given up or parked here, before it is touched.
"""

import contextlib
from collections.abc import Sequence

from postbackd.codec import CodecError, ErrorClass, Item, decode_item, first_id, trail_attempt
from postbackd.delivery.endpoints import Endpoint, Endpoints
from postbackd.delivery.recorder import Delivery, Recorder
from postbackd.delivery.schedule import expires_at_ms
from postbackd.errors import QueueUnavailableError
from postbackd.queue.lease_client import LeaseClient
from postbackd.template_values import RenderError

MAX_RECLAIMS = 5  # an item that was in the hands of so many dying workers may be what kills them
MAX_MISSING = 10
MISSING_PARK_MS = 60_000
MAX_AHEAD_MS = 30 * 86_400_000  # ingest takes 29 days


class Intake:
    """What a worker has claimed and not put into a lane yet."""

    def __init__(self, lease: LeaseClient, recorder: Recorder, endpoints: Endpoints, expires_after_s: float) -> None:
        self._lease = lease
        self._recorder = recorder
        self._endpoints = endpoints
        self._expires_after_ms = int(expires_after_s * 1000)
        self._without_record: list[tuple[int, Item]] = []

    @property
    def waiting(self) -> int:
        """Items whose endpoint could not be fetched yet: Redis was away just then."""
        return len(self._without_record)

    def accept(self, claimed: Sequence[tuple[int, bytes]], now_ms: int) -> list[Delivery]:
        """The deliveries of one claim. `now_ms` is server time."""
        deliveries: list[Delivery] = []
        unknown = self._without_record
        get = self._endpoints.get
        # Below this id a fresh element, which has no expiry of its own, may have expired: one comparison for most.
        old_id = first_id(now_ms - self._expires_after_ms)
        for token, data in claimed:
            try:
                item = decode_item(data)
            except CodecError as error:
                self._recorder.unusable(token, None, "poison", str(error), now_ms)
                continue
            endpoint = get(item.endpoint_id)
            if endpoint is None:
                unknown.append((token, item))
            elif item.postback_id > old_id and not item.has_trail and endpoint.compiled is not None:
                deliveries.append(Delivery(token, item, endpoint))
            else:
                self._take(token, item, endpoint, deliveries, now_ms)
        if unknown:
            self.fetch(deliveries, now_ms)
        return deliveries

    def fetch(self, deliveries: list[Delivery], now_ms: int) -> None:
        """Fetch the records that are missing, and go on with their items; leaves them waiting when Redis is away."""
        if self._lease.busy or not self._lease.is_connected:
            return
        wanted = {item.endpoint_id for _, item in self._without_record if self._endpoints.get(item.endpoint_id) is None}
        try:
            records = self._lease.endpoint_records(list(wanted)) if wanted else {}
        except QueueUnavailableError:
            return
        for endpoint_id, record in records.items():
            if record is not None:
                self._endpoints.add(endpoint_id, record)
        waiting, self._without_record = self._without_record, []
        for token, item in waiting:
            endpoint = self._endpoints.get(item.endpoint_id)
            if endpoint is None:
                self._miss(token, item, now_ms)
            else:
                self._take(token, item, endpoint, deliveries, now_ms)

    def _take(self, token: int, item: Item, endpoint: Endpoint, deliveries: list[Delivery], now_ms: int) -> None:
        """An item that needs a second look: it has a trail, or is old, or its endpoint is new."""
        if item.reclaims >= MAX_RECLAIMS:
            self._recorder.unusable(token, item, "poison", f"{item.reclaims} workers died with it", now_ms, endpoint)
        elif item.start_ms is not None and item.start_ms > now_ms + MAX_AHEAD_MS:
            detail = f"its start is too far ahead: {item.start_ms} ms"
            self._recorder.unusable(token, item, "poison", detail, now_ms, endpoint)
        elif item.start_ms is not None and item.start_ms > now_ms:
            self._recorder.park(token, item.start_ms - now_ms)
        elif endpoint.compiled is None:
            detail = f"its endpoint record cannot be used: {endpoint.fault}"
            self._recorder.unusable(token, item, endpoint.fault_reason, detail, now_ms)
        else:
            delivery = Delivery(token, item, endpoint)
            if now_ms > expires_at_ms(item, self._expires_after_ms / 1000):
                with contextlib.suppress(RenderError):  # for the log: where it would have gone
                    delivery.rendered = endpoint.compiled.render(item.values, item.postback_id, item.attempt, now_ms)
                self._recorder.gave_up(delivery, "expired", ErrorClass.EXPIRED, "it waited past its expiry", now_ms)
            else:
                deliveries.append(delivery)

    def _miss(self, token: int, item: Item, now_ms: int) -> None:
        """The record is gone: perhaps the server lost writes and ingest will store it again."""
        if item.reclaims >= MAX_RECLAIMS:
            self._recorder.unusable(token, item, "poison", f"{item.reclaims} workers died with it", now_ms)
            return
        missed = sum(code == ErrorClass.ENDPOINT_MISSING for _, code in item.attempts)
        if missed >= MAX_MISSING:
            self._recorder.unusable(token, item, "endpoint_missing", "its endpoint record is not in Redis", now_ms)
            return
        self._recorder.park(token, MISSING_PARK_MS, trail_attempt(now_ms, int(ErrorClass.ENDPOINT_MISSING)))
