"""What is measured through a server and an agent: visitor, server, agent, service, all on this machine."""

from __future__ import annotations

import ipaddress
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import frozen

from bench.processes import DidNotStart, free_port
from bench.systems import HOSTS, LIMITS, Running, Start, System, launch, twistd
from layer8.crypto.x509 import certificate_pin, self_signed

READY_S = 15.0
"""Seconds an agent may take to reach its server and offer its first route."""


@frozen
class Place:
    """Where the agent is: the server's address as it is seen from there, and the command that runs another there."""

    server: str = "127.0.0.1"
    enter: tuple[str, ...] = ()

    @property
    def near(self) -> bool:
        """Whether both ends share a loopback."""
        return ipaddress.ip_address(self.server).is_loopback


def write_secret(path: Path) -> Path:
    """Make a secret for a host."""
    path.touch(mode=0o600)
    path.write_text(os.urandom(32).hex())
    return path


def layer8(
    data_tls: str, place: Callable[[], Place] = Place, *, pool: int | None = None, agents: int = 1, tls: bool = False
) -> Start:
    """layer8's server and agents; `data_tls` never speaks plain TCP between them, as frp and rathole do here.

    `pool` is as shipped if it is None; `tls` lets visitors bring their own.
    """

    def start(name: str, folder: Path, backends: Mapping[str, int]) -> Running:
        where = place()
        front, control, data = free_port(), free_port(), free_port()
        listen, url, keys = _agents_port(folder, where, control)
        fronts = ["", f'"tcp:{front}:interface=127.0.0.1"']
        server = f"""[control]
listen = []

[proxy]
http = [{fronts[not tls]}]
https = [{fronts[tls]}]
agents = ["{listen}"]
data = ["tcp:{data}:interface={where.server}"]
public_http = 80
public_https = 443
data_tls = "{data_tls}"
access_log = "{folder}/access.log"
{keys}{LIMITS}"""
        agent = f'[control]\nlisten = []\n\n[agent]\nservers = ["{url}"]\n'
        for route, port in backends.items():
            secret = write_secret(folder / f"{route}.secret")
            host = f'host = "{route}.{HOSTS}"\nsecret_file = "{secret}"\n'
            server += f"\n[[proxy.host]]\n{host}"
            agent += f'\n[[agent.host]]\n{host}targets = {{ {443 if tls else 80} = "tcp:127.0.0.1:{port}" }}\n'
            agent += f"pool = {pool}\n" if pool is not None else ""
        (folder / "server.toml").write_text(server)
        (folder / "agent.toml").write_text(agent)
        programs = [("layer8-proxy", twistd("layer8-proxy", folder / "server.toml"))]
        running = launch(name, programs, folder, dict.fromkeys(backends, front))
        running.tls = tls
        try:
            for number in range(agents):
                argv = [*where.enter, *twistd("layer8-agent", folder / "agent.toml")]
                running.add(f"layer8-agent-{number}", argv, folder)
        except BaseException:
            running.end()
            raise
        return running

    return start


def _agents_port(folder: Path, where: Place, port: int) -> tuple[str, str, str]:
    """The listener for agents, how they reach it, and the keys that it needs: only loopback is trusted without TLS."""
    if where.near:
        return f"tcp:{port}:interface={where.server}", f"ws://{where.server}:{port}", ""
    key, certificate = self_signed(["node.bench.test"])
    for name, text in (("key.pem", key), ("cert.pem", certificate)):
        (folder / name).touch(mode=0o600)
        (folder / name).write_bytes(text)
    pin = certificate_pin(certificate)
    keys = f'tls_cert_file = "{folder}/cert.pem"\ntls_key_file = "{folder}/key.pem"\n'
    return f"tls:{port}:interface={where.server}", f"wss://{where.server}:{port}?pin={pin}", keys


def rathole(place: Callable[[], Place] = Place) -> Start:
    """Both ends of rathole over plain TCP."""

    def start(name: str, folder: Path, backends: Mapping[str, int]) -> Running:
        where = place()
        fronts, control = {route: free_port() for route in backends}, free_port()
        server = f'[server]\nbind_addr = "{where.server}:{control}"\ndefault_token = "bench"\n'
        client = f'[client]\nremote_addr = "{where.server}:{control}"\ndefault_token = "bench"\n'
        for route, port in backends.items():
            server += f'[server.services.{route}]\nbind_addr = "127.0.0.1:{fronts[route]}"\n'
            client += f'[client.services.{route}]\nlocal_addr = "127.0.0.1:{port}"\n'
        (folder / "server.toml").write_text(server)
        (folder / "client.toml").write_text(client)
        programs = [
            ("rathole-server", ["rathole", "--server", str(folder / "server.toml")]),
            ("rathole-client", [*where.enter, "rathole", "--client", str(folder / "client.toml")]),
        ]
        return launch(name, programs, folder, fronts)

    return start


def frp(mux: bool, place: Callable[[], Place] = Place) -> Start:
    """Both ends of frp without TLS between them; `mux`, its default, carries all visitors in one connection."""

    def start(name: str, folder: Path, backends: Mapping[str, int]) -> Running:
        where = place()
        fronts, control = {route: free_port() for route in backends}, free_port()
        write = _frp_toml if _frp_version() >= (0, 52) else _frp_ini
        server, client = write(folder, mux, where.server, control, fronts, backends)
        programs = [("frps", ["frps", "-c", str(server)]), ("frpc", [*where.enter, "frpc", "-c", str(client)])]
        return launch(name, programs, folder, fronts)

    return start


def _frp_version() -> tuple[int, ...]:
    ran = subprocess.run(["frps", "--version"], capture_output=True, text=True, timeout=10, check=False)
    return tuple(map(int, re.findall(r"\d+", ran.stdout)[:2]))


def _frp_ini(
    folder: Path, mux: bool, address: str, control: int, fronts: Mapping[str, int], backends: Mapping[str, int]
) -> tuple[Path, Path]:
    mux_line = f"tcp_mux = {str(mux).lower()}\n"
    server, client = folder / "frps.ini", folder / "frpc.ini"
    text = f"[common]\nbind_addr = {address}\nproxy_bind_addr = 127.0.0.1\nbind_port = {control}\n"
    server.write_text(f"{text}{mux_line}log_level = error\n")
    text = f"[common]\nserver_addr = {address}\nserver_port = {control}\n{mux_line}log_level = error\n"
    text += "login_fail_exit = false\n"
    for route, port in backends.items():
        text += f"[{route}]\ntype = tcp\nlocal_ip = 127.0.0.1\nlocal_port = {port}\nremote_port = {fronts[route]}\n"
    client.write_text(text)
    return server, client


def _frp_toml(
    folder: Path, mux: bool, address: str, control: int, fronts: Mapping[str, int], backends: Mapping[str, int]
) -> tuple[Path, Path]:
    mux_line = f"transport.tcpMux = {str(mux).lower()}\n"
    server, client = folder / "frps.toml", folder / "frpc.toml"
    server.write_text(
        f'bindAddr = "{address}"\nproxyBindAddr = "127.0.0.1"\nbindPort = {control}\n{mux_line}log.level = "error"\n'
    )
    text = f'serverAddr = "{address}"\nserverPort = {control}\n{mux_line}log.level = "error"\n'
    text += "transport.tls.enable = false\nloginFailExit = false\n"  # both ends start at the same time
    for route, port in backends.items():
        text += f'[[proxies]]\nname = "{route}"\ntype = "tcp"\nlocalIP = "127.0.0.1"\n'
        text += f"localPort = {port}\nremotePort = {fronts[route]}\n"
    client.write_text(text)
    return server, client


def wait_until_served(running: Running, ask: Callable[[], object]) -> None:
    """Repeat `ask` until it does not raise: a server listens before its agent has offered anything."""
    end = time.monotonic() + READY_S
    while True:
        try:
            ask()
            return
        except Exception as problem:
            for child in running.children:
                if child.popen.poll() is not None:
                    raise DidNotStart(f"{child.name}: {child.last_words()}") from None
            if time.monotonic() > end:
                raise DidNotStart(f"{running.name}: nothing served after {READY_S:g} s ({problem})") from None
            time.sleep(0.2)


_LEG = ("idle", "down8", "up8", "rate", "ping", "first")


def _row(name: str, title: str, start: Start, *needs: str, sniffs: bool = False, only: tuple[str, ...] = ()) -> System:
    return System(name, title, start, needs, sniffs=sniffs, tunnel=True, only=only)


_LEG = ("idle", "down8", "up8", "rate", "ping", "first")

TUNNELS: tuple[System, ...] = (
    _row("layer8-tunnel", "layer8 server + agent", layer8("never"), sniffs=True),
    _row(
        "layer8-tunnel-bare",
        "layer8, no pool",
        layer8("never", pool=0),
        sniffs=True,
        only=("close", "first", "rate"),
    ),
    _row("layer8-tunnel-tls", "layer8, plain HTTP: TLS to the agent", layer8("always"), sniffs=True),
    _row("layer8-tunnel-pass", "layer8, visitors' TLS: plain to the agent", layer8("auto", tls=True), only=_LEG),
    _row("layer8-two", "layer8, one agent of two killed", layer8("never", agents=2), only=("killed",)),
    _row("rathole", "rathole", rathole(), "rathole"),
    _row("frp", "frp, tcp_mux as shipped", frp(True), "frps", "frpc"),
    _row("frp-no-mux", "frp, tcp_mux off", frp(False), "frps", "frpc"),
)
