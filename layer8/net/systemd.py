"""What systemd wants to know: ready, reloading, stopping, alive, and a line of status (sd_notify(3))."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Sends to the socket named by $NOTIFY_SOCKET; without one, every call does nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read the socket's address and the watchdog's time from the environment."""
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        ours = environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        text = environ.get("WATCHDOG_USEC", "")
        self.watchdog = int(text) / 1e6 if ours and text.isascii() and text.isdigit() else 0.0
        """Seconds within which `alive` has to be called again; 0 is never."""

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            try:
                sender.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                # Serving matters more than being supervised.
                return

    def ready(self) -> None:
        """Everything listens, or a reload is over."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """The reactor turns."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send("STATUS=" + text.replace("\n", " "))
