# SPDX-License-Identifier: MIT
"""What a child of the supervisor does first, and the words for how one ended."""

import ctypes
import faulthandler
import os
import signal

from postbackd.errors import ExitCode

COMM_LENGTH = 15  # of a process name in Linux

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_libc = ctypes.CDLL(None, use_errno=True)


def die_with(parent_pid: int) -> None:
    """SIGKILL when the supervisor dies, however it dies: a worker alone would serve an old configuration for ever.

    The kernel ties this to the parent's thread that forked, hence only the main thread forks.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(ExitCode.FAILED)


def name_process(name: str) -> None:
    """What ps -o comm and top show."""
    _libc.prctl(_PR_SET_NAME, name[:COMM_LENGTH].encode(), 0, 0, 0)


def shed_supervisor() -> None:
    """Drop what a child inherits and must not have."""
    # A group of its own: ^C in a terminal goes to the whole foreground group, and a bjoern that gets SIGINT
    # without the drain's other half never ends. The supervisor alone hears it and tells us.
    os.setpgid(0, 0)
    for signum in (signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_DFL)
    # SIGTTOU: the group is now a background one, and `stty tostop` would stop it at its first log line.
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTTOU):
        signal.signal(signum, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    # The random module reseeds itself in a forked child; anything else random here comes from the kernel.
    faulthandler.enable(2)  # bjoern and pycurl are C: a crash should leave more than "killed by SIGSEGV"


def describe_exit(code: int) -> str:
    """An exit code in words, negative ones being signals."""
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:  # a real-time signal
            return f"killed by signal {-code}"
    try:
        return f"exit {code} ({ExitCode(code).name.lower()})"
    except ValueError:
        return f"exit {code}"
