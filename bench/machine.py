"""The machine: its description, a network of our own on it, and how much of it others are using."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import re
import resource
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import define, frozen

CLONE_NEWNET = 0x40000000
CLONE_NEWUSER = 0x10000000
SYS_NET = Path("/proc/sys/net")
DESCRIPTORS = 65536
"""Open files that are asked for; only root gets more than the limit it inherited."""
QUIET = 0.25
"""Cores that others may use during a sample; above it the sample is retaken once and marked."""


@frozen
class Network:
    """Where the measurements run."""

    private: bool
    congestion: str

    def text(self) -> str:
        """One line for the report."""
        where = "a network namespace of its own" if self.private else "the machine's own loopback"
        return f"{where}, tcp_congestion_control {self.congestion}"


def private_network(**settings: str) -> Network:
    """Move this process into a network namespace of its own with reno, or stay if that is not allowed.

    `settings` are more of its `net.ipv4`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.geteuid(), os.getegid()
    private = libc.unshare(CLONE_NEWNET) == 0
    if not private and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0:
        private = True
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    if private:
        _loopback_up()
        for name, value in (
            ("tcp_congestion_control", "reno"),
            ("ip_local_port_range", "10000 65535"),
            ("tcp_tw_reuse", "1"),
            *settings.items(),
        ):
            with contextlib.suppress(OSError):
                (SYS_NET / "ipv4" / name).write_text(value)
    return Network(private, (SYS_NET / "ipv4/tcp_congestion_control").read_text().strip())


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up = 1  # IFF_UP
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", up))  # SIOCSIFFLAGS


def most_descriptors() -> int:
    """Raise the limit of open files as far as it goes, and return it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (max(most, DESCRIPTORS), most):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return wanted
    return most


def processor() -> str:
    """The processor's name as the kernel knows it."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def describe() -> dict[str, str]:
    """Machine, kernel and interpreter."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "machine": f"{os.cpu_count()} processors, {processor()}, {memory:.0f} GiB",
        "kernel": platform.release(),
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


VERSIONS: dict[str, tuple[Sequence[str], str]] = {
    "haproxy": (("haproxy", "-v"), r"version (\S+)"),
    "nginx": (("nginx", "-v"), r"nginx/(\S+)"),
    "socat": (("socat", "-V"), r"socat version (\S+)"),
    "wrk": (("wrk", "-v"), r"wrk \D*(\d\S+)"),
    "iperf3": (("iperf3", "--version"), r"iperf (\S+)"),
    "frp": (("frps", "--version"), r"(\d\S+)"),
    "rathole": (("rathole", "--version"), r"Build Version:\s+(\S+)"),
    "Twisted": ((sys.executable, "-c", "import twisted; print(twisted.__version__)"), r"(\S+)"),
    "layer8": ((sys.executable, "-c", "import layer8; print(layer8.__version__)"), r"(\S+)"),
}


def versions() -> dict[str, str]:
    """The version of every program that is installed."""
    found = {}
    for name, (argv, pattern) in VERSIONS.items():
        if shutil.which(argv[0]) is None:
            continue
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
        match = re.search(pattern, ran.stdout + ran.stderr)
        found[name] = match[1] if match else "unknown"
    return found


def busy_s(stat: str) -> float:
    """Processor seconds used by anybody, from the text of /proc/stat: all but idle and iowait; guests are in user."""
    fields = [int(word) for word in stat.split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


@define
class Foreign:
    """Cores that others used between two moments: the machine's time less `ours()` and our finished children's."""

    ours: Callable[[], float]
    _busy: float = 0.0
    _own: float = 0.0
    _at: float = 0.0

    def begin(self) -> None:
        """Start counting."""
        self._busy, self._own, self._at = self._now()

    def cores(self) -> float:
        """Cores since `begin`."""
        busy, own, at = self._now()
        return max(0.0, ((busy - self._busy) - (own - self._own)) / max(at - self._at, 1e-9))

    def wait_for_quiet(self, most_s: float) -> None:
        """Wait until others use less than QUIET cores, at most `most_s` seconds."""
        end = time.monotonic() + most_s
        while time.monotonic() < end:
            self.begin()
            time.sleep(0.05)
            if self.cores() < QUIET:
                return

    def _now(self) -> tuple[float, float, float]:
        usage = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
        own = sum(one.ru_utime + one.ru_stime for one in usage) + self.ours()
        return busy_s(Path("/proc/stat").read_text()), own, time.monotonic()
