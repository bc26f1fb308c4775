# SPDX-License-Identifier: MIT
"""One file of the spool: appended and fsynced by one process, read back by whoever holds its lock.

    file    <data_dir>/spool/<stream>.spool, stream = <node>.<slot>.<16 hex>; flock'ed by its owner
    record  u32 length of the payload, u32 crc32 of the payload (both little-endian), payload
    payload msgpack [number, shard, endpoint id, endpoint record or nil, [element…]]

Numbers count from 1. Records are written and fsynced, one or several that came together, before the next ones begin:
only such a last lot can be torn, and none of it was acknowledged. The endpoint record stands in the first request of
the file that uses it. All requests of a file are of one shard, since `spooled:<stream>`, which counts them in Redis,
belongs to a shard.
"""

import contextlib
import fcntl
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from postbackd import oplog

SUFFIX = ".spool"
HEADER = struct.Struct("<II")
HEADER_BYTES = HEADER.size

Payload = tuple[int, int, bytes, bytes | None, list[bytes]]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Payload).decode


class SpooledRequest(NamedTuple):
    """One request as it was spooled, its endpoint record put back."""

    number: int
    endpoint_id: bytes
    record: bytes
    elements: list[bytes]


class SpoolFile:
    """An open, locked file of the spool. `bytes` and `count` tell what in it is whole and fsynced."""

    def __init__(self, path: Path, descriptor: int, shard: int = 0) -> None:
        self.path = path
        self.shard = shard
        self.stream = path.name.removesuffix(SUFFIX)
        self._descriptor = descriptor
        self.bytes = 0
        self.count = 0
        self.sealed = False  # nothing is appended any more
        self._written: set[bytes] = set()

    @classmethod
    def create(cls, folder: Path, stream: str, shard: int = 0) -> "SpoolFile":
        """A new file for the requests of a shard, its directory entry fsynced; raises OSError."""
        path = folder / (stream + SUFFIX)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _sync_folder(folder)
        except OSError:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        return cls(path, descriptor, shard)

    @classmethod
    def take(cls, path: Path) -> "SpoolFile | None":
        """The file of a process that has ended, its torn end cut off; None when it is locked, gone or unreadable."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:  # another user's, or no descriptor is free: it must not keep us from the others
            _say_unreadable(path, error)
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.fstat(descriptor).st_nlink > 0  # or its owner removed it just before it let go
        except BlockingIOError:
            is_ours = False
        if not is_ours:
            os.close(descriptor)
            return None
        file = cls(path, descriptor)
        file.sealed = True
        try:
            file._measure()
        except OSError as error:
            _say_unreadable(path, error)
            file.close()
            return None
        return file

    def append(self, requests: Sequence[tuple[bytes, bytes, list[bytes]]]) -> int:
        """Write requests (endpoint id, record, elements) and fsync them; the bytes they took.

        Raises OSError, and then the file must be sealed.
        """
        pieces: list[bytes] = []
        written: set[bytes] = set()
        for number, (endpoint_id, record, elements) in enumerate(requests, self.count + 1):
            wanted = None if endpoint_id in self._written or endpoint_id in written else record
            payload = _encode((number, self.shard, endpoint_id, wanted, elements))
            pieces += (HEADER.pack(len(payload), zlib.crc32(payload)), payload)
            written.add(endpoint_id)
        data = b"".join(pieces)
        try:
            if os.write(self._descriptor, data) != len(data):
                raise OSError(28, "No space left on device")
            os.fdatasync(self._descriptor)
        except OSError:
            self.sealed = True  # after a failed fsync nobody knows what of this file is on the disk
            with contextlib.suppress(OSError):  # it was not acknowledged: best it is not there at all
                os.ftruncate(self._descriptor, self.bytes)
            raise
        self._written |= written
        self.bytes += len(data)
        self.count += len(requests)
        return len(data)

    def payload_at(self, offset: int, end: int) -> bytes | None:
        """The payload of the record at an offset, None when no whole and sound one is there."""
        header = os.pread(self._descriptor, HEADER_BYTES, offset)
        if len(header) < HEADER_BYTES:
            return None
        length, checksum = HEADER.unpack(header)
        if length == 0 or offset + HEADER_BYTES + length > end:
            return None
        payload = os.pread(self._descriptor, length, offset + HEADER_BYTES)
        return payload if len(payload) == length and zlib.crc32(payload) == checksum else None

    def raw(self, offset: int, length: int) -> bytes:
        """Bytes as they are."""
        return os.pread(self._descriptor, length, offset)

    def _measure(self) -> None:
        """Find what is whole; report and cut off a torn end, and report what is damaged in the middle."""
        end = os.fstat(self._descriptor).st_size
        offset = 0
        while offset < end:
            payload = self.payload_at(offset, end)
            if payload is not None and offset == 0:
                with contextlib.suppress(msgspec.DecodeError):
                    self.shard = _decode(payload)[1]
            if payload is None and not self._goes_on_behind(offset, end):
                self._cut(offset, end)
                break
            offset += HEADER_BYTES + HEADER.unpack(self.raw(offset, HEADER_BYTES))[0]
            self.count += 1
        self.bytes = offset

    def _goes_on_behind(self, offset: int, end: int) -> bool:
        """Whether the bad record at `offset` has a sound one behind it: a damaged disk then, not a torn end."""
        behind = self._end_of(offset, end)
        return behind is not None and self.payload_at(behind, end) is not None

    def _end_of(self, offset: int, end: int) -> int | None:
        """Where the record at `offset` says that it ends, None when that is at the end of the file or behind it."""
        header = self.raw(offset, HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            return None
        behind = offset + HEADER_BYTES + int(HEADER.unpack(header)[0])
        return behind if behind < end else None

    def _cut(self, offset: int, end: int) -> None:
        if self._end_of(offset, end) is not None:  # more than one torn record: keep it for a person to look at
            self.set_aside("end", self.raw(offset, end - offset))
        oplog.warning("spool_torn", file=str(self.path), cut_bytes=end - offset, whole_requests=self.count)
        os.ftruncate(self._descriptor, offset)

    def set_aside(self, label: object, data: bytes) -> None:
        """Keep bytes that cannot be enqueued in a file of their own, and say so."""
        aside = self.path.with_name(f"{self.stream}.{label}.damaged")
        aside.write_bytes(data)
        oplog.error("spool_damaged", file=str(self.path), kept_in=str(aside), bytes=len(data), hint="check that disk")

    def close(self) -> None:
        """Let go of the file and its lock; it stays."""
        os.close(self._descriptor)

    def remove(self) -> None:
        """Remove the file: every request of it is in the queue for good."""
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


class SpoolReader:
    """Reads a file's requests in the order in which they were written."""

    def __init__(self, file: SpoolFile) -> None:
        self._file = file
        self.restart()

    def restart(self) -> None:
        """Begin again with the first; `number` is that of the request read last."""
        self._offset = 0
        self.number = 0
        self._records: dict[bytes, bytes] = {}

    def next(self) -> SpooledRequest | None:
        """The next request, None at the end. One that is damaged comes with no elements: to be passed over."""
        file = self._file
        if self._offset >= file.bytes:
            return None
        payload = file.payload_at(self._offset, file.bytes)
        length = HEADER_BYTES + HEADER.unpack(file.raw(self._offset, HEADER_BYTES))[0]
        raw_from, self._offset = self._offset, self._offset + length
        self.number += 1
        request = self._decode(payload) if payload is not None else None
        if request is None:
            file.set_aside(self.number, file.raw(raw_from, length))
            return SpooledRequest(self.number, bytes(8), b"", [])
        return request

    def _decode(self, payload: bytes) -> SpooledRequest | None:
        try:
            number, _shard, endpoint_id, record, elements = _decode(payload)
        except msgspec.DecodeError:
            return None
        if record is not None:
            self._records[endpoint_id] = record
        known = self._records.get(endpoint_id)
        if number != self.number or known is None:  # its endpoint record stood in a damaged one
            return None
        return SpooledRequest(number, endpoint_id, known, elements)


def _say_unreadable(path: Path, error: OSError) -> None:
    oplog.error("spool_unreadable", file=str(path), error=error.strerror, hint="its requests wait: tried each minute")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
