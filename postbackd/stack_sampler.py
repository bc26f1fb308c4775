# SPDX-License-Identifier: MIT
"""The stack sampler: what a worker's main thread is doing, looked at 100 times a second for some seconds, when asked.

It lives in every worker and does nothing until SIGPROF comes: then it reads the request that the admin process left in
`data_dir/profiles`, and a timer of the kernel sends SIGPROF to the main thread until the time is over. The result goes
into `data_dir/profiles/<id>.json`. Nothing is installed in the code that is watched: it costs nothing otherwise.

Each look counts once and is given the CPU time that the thread used since the look before. Python runs handlers between
its instructions only, so what runs in C is seen at the next instruction: when that is the first one of a function, the
time was its caller's (bjoern's own, for one), and is counted there.
"""

import ctypes
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType

import msgspec

from postbackd import oplog
from postbackd.data_dir import write_whole

SIGNAL = signal.SIGPROF
INTERVAL_MS = 10
LONGEST_S = 60.0
FOLDER = "profiles"
MAX_DEPTH = 128
JUST_ENTERED = 8  # bytes of a function's code before and with RESUME, where a pending signal is taken up

_CLOCK_MONOTONIC = 1
_SIGEV_THREAD_ID = 4
_libc = ctypes.CDLL(None, use_errno=True)


class _SigEvent(ctypes.Structure):
    """struct sigevent of Linux, 64 bytes, with the member for SIGEV_THREAD_ID."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("thread_id", ctypes.c_int),
        ("rest", ctypes.c_char * 44),
    )


class _TimerSpec(ctypes.Structure):
    """struct itimerspec: interval and first expiry, seconds and ns each."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns"))


class SampleRequest(msgspec.Struct, frozen=True):
    """What the admin process asks a worker for."""

    id: str
    seconds: float


class Stack(msgspec.Struct, frozen=True):
    """One stack, outermost frame first."""

    frames: list[str]
    samples: int
    cpu_us: int


class SampleResult(msgspec.Struct, frozen=True):
    """What a worker found."""

    id: str
    role: str
    slot: int
    pid: int
    seconds: float
    interval_ms: int
    samples: int
    cpu_us: int
    stacks: list[Stack]


def request_path(data_dir: Path, role: str, slot: int) -> Path:
    """Where a worker looks for its request."""
    return data_dir / FOLDER / f"{role}.{slot}.request"


def result_path(data_dir: Path, sample_id: str) -> Path:
    """Where a result stands once it is there."""
    return data_dir / FOLDER / f"{sample_id}.json"


class StackSampler:
    """One process' sampler; `install` in the main thread, before signals are let in."""

    def __init__(
        self, data_dir: Path, role: str, slot: int, pid: int, on_signal: Callable[[], None] = lambda: None
    ) -> None:
        """`on_signal` is called in the handler each time."""
        self._data_dir = data_dir
        self._role = role
        self._slot = slot
        self._pid = pid
        self._on_signal = on_signal
        self._request: SampleRequest | None = None
        self._found: dict[tuple[CodeType, ...], list[int]] = {}
        self._started_s = 0.0
        self._seen_ns = 0
        self._is_looking = False
        self._timer = ctypes.c_void_p()

    def install(self) -> None:
        """Listen to SIGPROF, whose default action would end the process."""
        signal.signal(SIGNAL, self._handle)

    def _handle(self, _signum: int, frame: FrameType | None) -> None:
        self._on_signal()
        if self._is_looking:  # Python lets a signal interrupt the handler of the one before
            return
        self._is_looking = True
        try:
            request = self._request
            if request is None:
                self._begin()
                return
            self._look(frame)
            if time.monotonic() - self._started_s >= request.seconds:
                self._end(request)
        finally:
            self._is_looking = False

    def _begin(self) -> None:
        path = request_path(self._data_dir, self._role, self._slot)
        try:
            request = msgspec.json.decode(path.read_bytes(), type=SampleRequest)
            path.unlink()
        except FileNotFoundError:  # nobody asked: the timer's last signal came after it was deleted
            return
        except (OSError, msgspec.DecodeError) as error:
            oplog.warning("profile_request_unreadable", error=error)
            return
        self._request = request
        self._found = {}
        self._started_s = time.monotonic()
        self._seen_ns = time.thread_time_ns()
        self._start_timer()

    def _start_timer(self) -> None:
        event = _SigEvent(None, SIGNAL, _SIGEV_THREAD_ID, threading.get_native_id(), b"")
        if _libc.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)):
            self._request = None
            oplog.error("profile_timer_failed", errno=ctypes.get_errno())
            return
        every_ns = INTERVAL_MS * 1_000_000
        spec = _TimerSpec(0, every_ns, 0, every_ns)
        _libc.timer_settime(self._timer, 0, ctypes.byref(spec), None)

    def _look(self, frame: FrameType | None) -> None:
        """Count where the main thread is: about 3 µs."""
        if frame is not None and frame.f_lasti <= JUST_ENTERED and frame.f_back is not None:
            frame = frame.f_back
        codes: list[CodeType] = []
        while frame is not None and len(codes) < MAX_DEPTH:
            codes.append(frame.f_code)
            frame = frame.f_back
        now_ns = time.thread_time_ns()
        count = self._found.setdefault(tuple(codes), [0, 0])
        count[0] += 1
        count[1] += now_ns - self._seen_ns
        self._seen_ns = now_ns

    def _end(self, request: SampleRequest) -> None:
        _libc.timer_delete(self._timer)
        self._request = None
        stacks = [
            Stack([frame_name(code) for code in reversed(codes)], samples, cpu_ns // 1000)
            for codes, (samples, cpu_ns) in self._found.items()
        ]
        self._found = {}
        result = SampleResult(
            request.id,
            self._role,
            self._slot,
            self._pid,
            round(time.monotonic() - self._started_s, 3),
            INTERVAL_MS,
            sum(stack.samples for stack in stacks),
            sum(stack.cpu_us for stack in stacks),
            sorted(stacks, key=lambda stack: -stack.cpu_us),
        )
        try:
            write_whole(result_path(self._data_dir, request.id), msgspec.json.encode(result).decode())
        except OSError as error:
            oplog.error("profile_not_written", error=error.strerror, hint=f"make room in {self._data_dir}")


def frame_name(code: CodeType) -> str:
    """A frame as profiles show it: `postbackd/delivery/worker.py:DeliveryWorker.turn`."""
    parts = Path(code.co_filename).parts
    for root in ("site-packages", "postbackd"):
        if root in parts:
            start = len(parts) - 1 - parts[::-1].index(root)
            parts = parts[start + (root == "site-packages") :]
            break
    else:
        parts = parts[-2:]
    return f"{'/'.join(parts)}:{code.co_qualname}".replace(";", ",").replace(" ", "_")
