# SPDX-License-Identifier: MIT
"""The stack sampler in a process of its own: what it finds, and that a storm of its signal breaks nothing."""

import subprocess
import sys
from pathlib import Path

import msgspec

from postbackd.stack_sampler import FOLDER, SampleRequest, SampleResult, frame_name, request_path, result_path

WORK = """
import os, signal, sys, threading, time
from pathlib import Path
from postbackd.stack_sampler import SIGNAL, StackSampler, result_path

folder = Path(sys.argv[1])

def storm():
    for _ in range(int(sys.argv[2])):
        os.kill(os.getpid(), SIGNAL)

def spin(until_s):
    total = 0
    while time.monotonic() < until_s or not result_path(folder, "a").exists():
        for number in range(1000):
            total += number
    return total

StackSampler(folder, "deliver", 3, os.getpid()).install()
signal.raise_signal(SIGNAL)
threading.Thread(target=storm).start()
spin(time.monotonic() + 0.2)
for _ in range(100):
    signal.raise_signal(SIGNAL)  # nobody asks any more
"""


def sample(folder: Path, signals: int) -> SampleResult:
    (folder / FOLDER).mkdir()
    request_path(folder, "deliver", 3).write_bytes(msgspec.json.encode(SampleRequest("a", 0.2)))
    ended = subprocess.run(
        [sys.executable, "-c", WORK, str(folder), str(signals)], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not request_path(folder, "deliver", 3).exists()
    return msgspec.json.decode(result_path(folder, "a").read_bytes(), type=SampleResult)


def test_busy_function_is_found_with_its_callers(tmp_path: Path) -> None:
    result = sample(tmp_path, 0)
    assert (result.role, result.slot, result.id) == ("deliver", 3, "a")
    assert result.samples == sum(stack.samples for stack in result.stacks) > 0
    busiest = result.stacks[0].frames
    assert busiest[-1].endswith(":spin") and busiest[0].endswith(":<module>")
    assert 0 < result.cpu_us <= result.seconds * 1_500_000


def test_storm_of_signals_leaves_one_whole_result(tmp_path: Path) -> None:
    assert sample(tmp_path, 20_000).stacks


def test_frame_names_are_short_and_hold_nothing_that_separates_them() -> None:
    def inner() -> None: ...

    assert frame_name(inner.__code__).startswith("unit/")
    assert frame_name(request_path.__code__) == "postbackd/stack_sampler.py:request_path"
    assert frame_name(msgspec.structs.fields.__code__) == "msgspec/structs.py:fields"
