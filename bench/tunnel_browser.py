"""How long a page waits for an answer, with `L8.fetch` and with `fetch`: `python -m bench.tunnel_browser KIND ...`.

A process of its own, since a browser is driven from a reactor. Both pages ask for the same small answer of the same
backend, one time after the other, in batches: the clocks of browsers are coarse.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

import layer8
from bench.load import NoLoad
from bench.tunnel_backend import AUTHORITY, PAGE, SMALL
from layer8.cli.run import on_reactor

if TYPE_CHECKING:
    from bench.tunnel_stand import Stand

BROWSERS: Final = ("chromium", "firefox")
BATCH: Final = 10
LIMIT_S: Final = 120.0

LOOP: Final = """(async () => {
  const found = [];
  for (let turn = 0; turn < %d; turn++) {
    const begun = performance.now();
    for (let number = 0; number < %d; number++) await (await %s).text();
    found.push((performance.now() - begun) / %d);
  }
  return found;
})()"""
CONNECT: Final = """(async () => {
  const { L8 } = await import(%s);
  globalThis.tunnel = await L8.connect(%s);
  return (await globalThis.tunnel.fetch(%s)).status;
})()"""


@frozen
class Timed:
    """Milliseconds of an answer, one for each batch."""

    tunnel: list[float]
    plain: list[float]


def measure(kind: str, stand: Stand, fetches: int) -> Timed:
    """Measure in a browser; raises NoLoad."""
    argv = [sys.executable, "-m", "bench.tunnel_browser", kind, str(fetches), str(stand.relay_port)]
    argv += [stand.ways["direct"].target.origin, stand.pin]
    root = Path(__file__).parents[1]
    try:
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=root)
    except subprocess.TimeoutExpired:
        raise NoLoad(f"{kind} took more than {LIMIT_S:g} s") from None
    if ran.returncode:
        raise NoLoad((ran.stderr.strip() or "no answer").splitlines()[-1])
    said = json.loads(ran.stdout.splitlines()[-1])
    return Timed(said["tunnel"], said["plain"])


async def _measure(reactor: Any, kind: str, fetches: str, relay: str, origin: str, pin: str) -> None:
    from layer8.testing.browser import Chromium, Firefox

    browsers: dict[str, Any] = {"chromium": Chromium, "firefox": Firefox}
    chosen = browsers[kind]
    if reason := chosen.absent():
        raise SystemExit(reason)
    app = f"layer8.localhost:{relay}"
    script = f"/l8/{layer8.__version__}/l8.js"
    options = {"relay": f"http://{app}", "gateway": "layer8", "authority": AUTHORITY, "pin": pin}
    turns = max(1, int(fetches) // BATCH)
    found: dict[str, list[float]] = {}
    async with await chosen.start(reactor, hosts={"layer8.localhost": "127.0.0.1"}) as browser:
        page = await browser.page(f"http://{app}/")
        url = f"https://{AUTHORITY}{SMALL}"
        status = await page.evaluate(CONNECT % (json.dumps(script), json.dumps(options), json.dumps(url)))
        if status != 200:
            raise SystemExit(f"the page got {status}")
        asks = {"tunnel": f"globalThis.tunnel.fetch({json.dumps(url)})", "plain": f"fetch({json.dumps(SMALL)})"}
        await page.evaluate(LOOP % (1, BATCH, asks["tunnel"], BATCH))
        found["tunnel"] = await page.evaluate(LOOP % (turns, BATCH, asks["tunnel"], BATCH))
        await page.goto(f"{origin}{PAGE}")
        await page.evaluate(LOOP % (1, BATCH, asks["plain"], BATCH))
        found["plain"] = await page.evaluate(LOOP % (turns, BATCH, asks["plain"], BATCH))
    print(json.dumps(found))


if __name__ == "__main__":
    on_reactor(lambda reactor: _measure(reactor, *sys.argv[1:]))
