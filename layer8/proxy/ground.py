"""What a proxy server stands on: a daemon's `layer8.control.frame.Frame`, or what a `Gateway` makes for itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from layer8.config.load import Loaded
from layer8.control.metrics import Metrics
from layer8.control.service import ControlService
from layer8.control.table import Table
from layer8.crypto.keys import NodeKey
from layer8.crypto.x509 import Identity
from layer8.net.logs import Logs
from layer8.net.service import Health


class Configured(Protocol):
    """Where the configuration is."""

    @property
    def loaded(self) -> Loaded:
        """Give what was read."""


class Ground(Protocol):
    """See the module."""

    reactor: Any
    environ: Mapping[str, str]
    home: Path
    key: NodeKey
    logs: Logs
    table: Table
    metrics: Metrics
    control: ControlService

    @property
    def source(self) -> Configured:
        """Where the configuration is."""

    @property
    def health(self) -> Health:
        """The checks of this process."""

    def identity(self, name: str = "", cert_file: str = "", key_file: str = "") -> Identity:
        """Give the certificate of TLS listeners: the configured pair, else a self-signed one."""
