"""Install the wheel of a folder into this environment and use it as a user would: `check_installed.py FOLDER`.

`tox -e wheel` runs it by `python -P` in an empty folder, so that no source tree is in the way. It needs nothing but
the standard library, prints one line per step, and exits with 1 at the first step that goes wrong.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BIN = Path(sys.executable).parent
# How long a daemon may take to say that it listens, and how long it must then stay up, in seconds.
START, STAY, STOP = 30.0, 2.0, 15.0

OPTIONS_OF_EVERY_PLUGIN = """
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
for maker in getPlugins(IServiceMaker):
    if maker.tapname.startswith("layer8-"):
        maker.options()
        print(maker.tapname)
"""

FILES_OF_PAGES = """
from importlib.resources import files
from layer8.cli.inspector import FILES
for name in FILES:
    assert (files("layer8") / "web" / "inspect" / name).read_bytes()
from layer8.tunnel.demo_stage import FILES
for name in FILES:
    assert (files("layer8") / "web" / "demo" / name).read_bytes()
"""


def run(*command: str | Path, env: dict[str, str] | None = None, limit: float = 120) -> str:
    """Run a program to its end and give what it printed; a bad end is ours too."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=limit,
        env=env,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        fail(f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def fail(why: str) -> None:
    """Say what went wrong and end."""
    sys.exit(f"check_installed: {why}")


def step(text: str) -> None:
    """Say what was found to be right."""
    print(f"ok: {text}", flush=True)


def isolated() -> list[str]:
    """Give the words that run a program on a loopback of its own, where this is allowed, so no port is busy."""
    words = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    try:
        subprocess.run([*words, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return words


def start_and_stop(name: str, home: Path) -> None:
    """Start one daemon with no option, see it say where it listens and stay, then end it by SIGTERM."""
    env = os.environ | {"LAYER8_HOME": str(home)}
    log = home.parent / f"{name}.log"
    with log.open("wb") as out:
        daemon = subprocess.Popen(
            [*isolated(), str(BIN / "twistd"), "-n", "--pidfile=", name],
            stdout=out,
            stderr=out,
            env=env,
            cwd=home.parent,
        )
    try:
        deadline = time.monotonic() + START
        while b"listen" not in log.read_bytes().lower():
            if daemon.poll() is not None or time.monotonic() > deadline:
                fail(f"twistd {name} did not say where it listens:\n{log.read_text()}")
            time.sleep(0.05)
        time.sleep(STAY)
        if daemon.poll() is not None:
            fail(f"twistd {name} did not stay up:\n{log.read_text()}")
        daemon.send_signal(signal.SIGTERM)
        # twistd ends by the very signal once it has stopped everything; systemd takes that for a clean end, too.
        if daemon.wait(STOP) not in (0, -signal.SIGTERM):
            fail(f"twistd {name} ended with {daemon.returncode} on SIGTERM:\n{log.read_text()}")
    finally:
        daemon.kill()
        daemon.wait()
    if "Traceback" in log.read_text():
        fail(f"twistd {name} printed a traceback:\n{log.read_text()}")


def main(folder: Path) -> None:
    """Take the steps in order."""
    (wheel,) = folder.glob("layer8-*.whl")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--force-reinstall", wheel, limit=600)
    step(f"installed {wheel.name}")

    where = Path(run(sys.executable, "-P", "-c", "import layer8; print(layer8.__file__)").strip())
    if not where.is_relative_to(sys.prefix):
        fail(f"layer8 is imported from {where}, not from the wheel")
    step(f"imported from {where.parent}")

    run(sys.executable, "-P", "-c", FILES_OF_PAGES)
    step("the files of its pages came along")

    listed = run(BIN / "twistd", "--help")
    plugins = run(sys.executable, "-P", "-c", OPTIONS_OF_EVERY_PLUGIN).split()
    roles = ("proxy", "agent", "relay", "tracker", "dht", "rendezvous", "node", "tunnel", "gateway")
    for name in {*(f"layer8-{role}" for role in roles), *plugins}:
        if name not in listed or name not in plugins:
            fail(f"twistd --help does not list {name}, or its options cannot be built")
    step(f"twistd lists {' '.join(sorted(plugins))}, and each builds its options")

    with tempfile.TemporaryDirectory() as folder_of_state:
        for name in sorted(plugins):
            home = Path(folder_of_state) / name
            home.mkdir(mode=0o700)
            start_and_stop(name, home)
            step(f"twistd {name} starts with no option and stops on SIGTERM")

        env = os.environ | {"LAYER8_HOME": str(Path(folder_of_state) / "demo")}
        if "demo" not in run(BIN / "layer8", "--help"):
            fail("layer8 --help does not name the demo")
        step("layer8 --help")
        run(*isolated(), BIN / "layer8", "demo", "--once", env=env)
        step("layer8 demo --once")
        tunnel = (sys.executable, "-P", "-m", "layer8.tunnel.demo", "--once", "--no-browser")
        if "none found" not in run(*isolated(), *tunnel, env=env):
            fail("the tunnel's demo does not say that no word got out")
        step("python -m layer8.tunnel.demo --once")

    if not list((Path(sys.prefix) / "share" / "layer8" / "systemd").glob("*.service")):
        fail("the wheel brought no systemd units")
    step("systemd units are in share/layer8/systemd")

    run(sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", "layer8")
    if "layer8" in run(BIN / "twistd", "--help") or not shutil.which("twistd", path=str(BIN)):
        fail("twistd still knows layer8 after the uninstall")
    step("twistd works after the uninstall")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
