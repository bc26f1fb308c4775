# SPDX-License-Identifier: MIT
"""A clean Debian of its own, with systemd as its process 1: installed, booted, cut from power, booted again.

Namespaces for mounts, processes, names, IPC and cgroups, and a network that has loopback only and outlives a power cut,
so that clients and targets of a test can stand outside the machine. What is started dies with the test at the latest,
and nothing but the test's own folder is written to.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import wait_until
from tests.support.programs import need

SUITE = "bookworm"
# Beyond minbase: what makes it boot, what every Debian server has, and what docs/install.md asks for.
PACKAGES = "systemd,systemd-sysv,dbus,ca-certificates,procps,logrotate,make,python3,python3-venv"
# A root that is ready, packed: saves half a minute where the test is run again and again.
READY_ROOT = "POSTBACKD_DEBIAN_TAR"
BOUND_S = 120
BOOT = Path(__file__).with_name("boot_root.sh")
DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL"]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def debian_root(folder: Path) -> Iterator["DebianRoot"]:
    """Made in half a minute; skips where there can be none. The caller's thread is on its network."""
    if os.geteuid() != 0:
        pytest.skip("a Debian root needs root")
    if subprocess.run(["unshare", "-m", "-p", "-f", "-n", "-u", "-i", "-C", "true"], capture_output=True).returncode:
        pytest.skip("a Debian root needs namespaces, and this machine allows none")
    _make(folder / "root")
    root = DebianRoot(folder)
    try:
        with root.network():
            yield root
    except BaseException:
        print(root.console.read_text()[-2000:])
        raise
    finally:
        root.destroy()
        shutil.rmtree(root.root)


def _make(root: Path) -> None:
    if ready := os.environ.get(READY_ROOT):
        root.mkdir()
        _run("tar", "-xf", ready, "-C", str(root))
    else:
        # debootstrap makes the same in twice the time.
        options = ["--variant=minbase", f"--include={PACKAGES}", "--dpkgopt=force-unsafe-io"]
        _run(need("mmdebstrap", "mmdebstrap"), *options, SUITE, str(root))
    # The way out is the test machine's: its names, and whom its registries' proxy is vouched for by.
    for name in ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf"):
        if Path(name).exists():
            shutil.copy(name, f"{root}{name}")


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {(done.stdout + done.stderr)[-3000:]}"


class DebianRoot:
    """The machine, whose disk is `root`; `destroy` whatever happens."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.console = folder / "console"
        self._cgroup = f"postbackd-test-{os.getpid()}-{time.monotonic_ns()}"
        self._outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self._lan = _new_network()
        self._boot: subprocess.Popen[bytes] | None = None
        self._init: psutil.Process | None = None

    def boot(self, *, systemd: bool = True) -> None:
        """Returns when every unit has been started. Without systemd nothing is: process 1 reaps, and that is all."""
        assert self._boot is None, "it is switched on"
        spaces = ["unshare", "--kill-child", "-m", "-p", "-f", "-u", "-i"]
        init = ["bash", str(BOOT), str(self.root), self._cgroup, "systemd" if systemd else "none"]
        with self.console.open("ab") as console:
            self._boot = subprocess.Popen(
                [*DIES_WITH_US, "nsenter", f"--net=/proc/self/fd/{self._lan}", *spaces, *init],
                pass_fds=[self._lan],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        unshare = psutil.Process(self._boot.pid)
        wait_until(lambda: self._has_ended() or unshare.children(), "process 1 exists")
        assert not self._has_ended(), self.console.read_text()
        self._init = unshare.children()[0]
        power = Path(f"/proc/{self._init.pid}/root/run/has-power")
        wait_until(lambda: self._has_ended() or power.exists(), "it has its own root")
        assert not self._has_ended(), self.console.read_text()
        if systemd:
            wait_until(lambda: "running" in self.run("systemctl", "is-system-running", "--wait", code=None), "it is up",
                       BOUND_S)  # fmt: skip

    def _has_ended(self) -> bool:
        return self._boot is None or self._boot.poll() is not None

    def command(self, *command: str, online: bool = False) -> list[str]:
        """What runs a command in there. `online`: with the network of the machine that the test is on."""
        assert self._init is not None
        network = self._outside if online else self._lan
        return ["nsenter", "-t", str(self._init.pid), "-m", "-p", "-u", "-i", "-C",
                f"--net=/proc/{os.getpid()}/fd/{network}", *command]  # fmt: skip

    def run(self, *command: str, code: int | None = 0, online: bool = False, cwd: str = "/", **environment: str) -> str:
        """Its output, both kinds. The exit code must be this one, unless it is None."""
        done = subprocess.run(
            self.command("env", "-C", cwd, *command, online=online),
            env={
                "PATH": PATH,
                "HOME": "/root",
                "LANG": "C.UTF-8",
                **(_pip_settings() if online else {}),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        text = done.stdout + done.stderr
        assert code is None or done.returncode == code, f"{command}: exit {done.returncode}, {text[-4000:]}"
        return text

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """This thread, and every thread and process that it starts, is on the machine's loopback."""
        _enter(self._lan)
        try:
            yield
        finally:
            _enter(self._outside)

    def is_there(self, name: str) -> bool:
        """A path as the machine's processes see it."""
        return self._init is not None and Path(f"/proc/{self._init.pid}/root{name}").exists()

    def cut_the_power(self) -> None:
        """SIGKILL of process 1: the kernel kills everything else in its namespace at once."""
        if self._boot is None:
            return
        if self._init:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._init.kill()
        self._boot.kill()
        self._boot.wait()
        self._boot = self._init = None
        # Empty when the last process is gone, and then it can be removed; the next boot makes it again.
        wait_until(self._remove_cgroup, "no process is left")

    def _remove_cgroup(self) -> bool:
        script = 'mount -t cgroup2 cgroup2 /mnt && cd /mnt && { [ ! -e "$1" ] || find "$1" -depth -type d -delete; }'
        return (
            subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", self._cgroup], capture_output=True).returncode
            == 0
        )

    def destroy(self) -> None:
        """Nothing stays but the folder."""
        self.cut_the_power()
        for descriptor in (self._lan, self._outside):
            os.close(descriptor)


def _new_network() -> int:
    """A descriptor of it: the network lives as long as that is open."""
    need("ip", "iproute2")
    command = [*DIES_WITH_US, "unshare", "-n", "sh", "-c", "ip link set lo up && echo up && exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"up\n"
        network = os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY)
        assert holder.stdin
        holder.stdin.close()
    return network


def _enter(network: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(network, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _pip_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.endswith("_proxy")}
