"""What is measured through a server and an agent: visitor, server, agent, service, all on this machine."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.processes import DidNotStart, free_port
from bench.systems import HOSTS, LIMITS, Running, Start, System, launch, twistd

READY_S = 15.0
"""Seconds an agent may take to reach its server and offer its first route."""


def _secret(path: Path) -> Path:
    path.touch(mode=0o600)
    path.write_text(os.urandom(32).hex())
    return path


def layer8(data_tls: str) -> Start:
    """layer8's server and agent; `data_tls` never speaks plain TCP between them, as frp and rathole do here."""

    def start(name: str, folder: Path, backends: Mapping[str, int]) -> Running:
        front, agents, data = free_port(), free_port(), free_port()
        server = f"""[control]
listen = []

[proxy]
http = ["tcp:{front}:interface=127.0.0.1"]
https = []
agents = ["tcp:{agents}:interface=127.0.0.1"]
data = ["tcp:{data}:interface=127.0.0.1"]
public_http = 80
data_tls = "{data_tls}"
access_log = "{folder}/access.log"
{LIMITS}"""
        agent = f'[control]\nlisten = []\n\n[agent]\nservers = ["ws://127.0.0.1:{agents}"]\n'
        for route, port in backends.items():
            secret = _secret(folder / f"{route}.secret")
            host = f'host = "{route}.{HOSTS}"\nsecret_file = "{secret}"\n'
            server += f"\n[[proxy.host]]\n{host}"
            agent += f'\n[[agent.host]]\n{host}targets = {{ 80 = "tcp:127.0.0.1:{port}" }}\n'
        (folder / "server.toml").write_text(server)
        (folder / "agent.toml").write_text(agent)
        programs = [
            ("layer8-proxy", twistd("layer8-proxy", folder / "server.toml")),
            ("layer8-agent", twistd("layer8-agent", folder / "agent.toml")),
        ]
        return launch(name, programs, folder, dict.fromkeys(backends, front))

    return start


def rathole(name: str, folder: Path, backends: Mapping[str, int]) -> Running:
    """Both ends of rathole over plain TCP."""
    fronts, control = {route: free_port() for route in backends}, free_port()
    server = f'[server]\nbind_addr = "127.0.0.1:{control}"\ndefault_token = "bench"\n'
    client = f'[client]\nremote_addr = "127.0.0.1:{control}"\ndefault_token = "bench"\n'
    for route, port in backends.items():
        server += f'[server.services.{route}]\nbind_addr = "127.0.0.1:{fronts[route]}"\n'
        client += f'[client.services.{route}]\nlocal_addr = "127.0.0.1:{port}"\n'
    (folder / "server.toml").write_text(server)
    (folder / "client.toml").write_text(client)
    programs = [
        ("rathole-server", ["rathole", "--server", str(folder / "server.toml")]),
        ("rathole-client", ["rathole", "--client", str(folder / "client.toml")]),
    ]
    return launch(name, programs, folder, fronts)


def frp(mux: bool) -> Start:
    """Both ends of frp without TLS between them; `mux`, its default, carries all visitors in one connection."""

    def start(name: str, folder: Path, backends: Mapping[str, int]) -> Running:
        fronts, control = {route: free_port() for route in backends}, free_port()
        write = _frp_toml if _frp_version() >= (0, 52) else _frp_ini
        server, client = write(folder, mux, control, fronts, backends)
        programs = [("frps", ["frps", "-c", str(server)]), ("frpc", ["frpc", "-c", str(client)])]
        return launch(name, programs, folder, fronts)

    return start


def _frp_version() -> tuple[int, ...]:
    ran = subprocess.run(["frps", "--version"], capture_output=True, text=True, timeout=10, check=False)
    return tuple(map(int, re.findall(r"\d+", ran.stdout)[:2]))


def _frp_ini(
    folder: Path, mux: bool, control: int, fronts: Mapping[str, int], backends: Mapping[str, int]
) -> tuple[Path, Path]:
    mux_line = f"tcp_mux = {str(mux).lower()}\n"
    server, client = folder / "frps.ini", folder / "frpc.ini"
    server.write_text(f"[common]\nbind_addr = 127.0.0.1\nbind_port = {control}\n{mux_line}log_level = error\n")
    text = f"[common]\nserver_addr = 127.0.0.1\nserver_port = {control}\n{mux_line}log_level = error\n"
    for route, port in backends.items():
        text += f"[{route}]\ntype = tcp\nlocal_ip = 127.0.0.1\nlocal_port = {port}\nremote_port = {fronts[route]}\n"
    client.write_text(text)
    return server, client


def _frp_toml(
    folder: Path, mux: bool, control: int, fronts: Mapping[str, int], backends: Mapping[str, int]
) -> tuple[Path, Path]:
    mux_line = f"transport.tcpMux = {str(mux).lower()}\n"
    server, client = folder / "frps.toml", folder / "frpc.toml"
    server.write_text(
        f'bindAddr = "127.0.0.1"\nproxyBindAddr = "127.0.0.1"\nbindPort = {control}\n{mux_line}log.level = "error"\n'
    )
    text = f'serverAddr = "127.0.0.1"\nserverPort = {control}\n{mux_line}log.level = "error"\n'
    text += "transport.tls.enable = false\n"
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


TUNNELS: tuple[System, ...] = (
    System("layer8-tunnel", "layer8 server + agent", layer8("never"), sniffs=True),
    System("layer8-tunnel-tls", "layer8 server + agent, data over TLS", layer8("always"), sniffs=True),
    System("rathole", "rathole", rathole, ("rathole",)),
    System("frp", "frp, tcp_mux as shipped", frp(True), ("frps", "frpc")),
    System("frp-no-mux", "frp, tcp_mux off", frp(False), ("frps", "frpc")),
)
