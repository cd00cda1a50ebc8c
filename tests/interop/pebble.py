"""pebble, a certificate authority for tests (RFC 8555), that looks for its proofs on ports of our choice.

Every name leads to 127.0.0.1: `pebble-challtestsrv` is its DNS.
"""

import json
import ssl
import urllib.request
from pathlib import Path

from attrs import frozen

from layer8.crypto.x509 import self_signed
from tests.interop.daemons import Program, Scope, answers, folder, free_port


@frozen
class Pebble:
    """A running one; `trust` vouches for its own API."""

    program: Program
    url: str
    trust: Path
    roots: str

    @classmethod
    def start(cls, scope: Scope, http: int, https: int, life: int = 90 * 86400) -> "Pebble":
        """Start it with its DNS; it looks at `http` for http-01 and at `https` for tls-alpn-01.

        Its certificates are good for `life` seconds.
        """
        home = folder(scope)
        key, trust = self_signed(["localhost", "127.0.0.1"])
        (home / "key.pem").write_bytes(key)
        (home / "cert.pem").write_bytes(trust)
        api, roots, names, control = (free_port() for _ in range(4))
        settings = {
            "listenAddress": f"127.0.0.1:{api}",
            "managementListenAddress": f"127.0.0.1:{roots}",
            "certificate": "cert.pem",
            "privateKey": "key.pem",
            "httpPort": http,
            "tlsPort": https,
            "externalAccountBindingRequired": False,
            "certificateValidityPeriod": life,
        }
        (home / "pebble.json").write_text(json.dumps({"pebble": settings}))
        off = [word for kind in ("http01", "https01", "tlsalpn01") for word in (f"-{kind}", "")]
        Program.start(
            scope,
            "pebble-challtestsrv",
            [
                *("pebble-challtestsrv", *off, "-dns01", f"127.0.0.1:{names}", "-defaultIPv6", ""),
                *("-management", f"127.0.0.1:{control}"),
            ],
            home,
            ready=lambda _: answers(control),
        )
        program = Program.start(
            scope,
            "pebble",
            ["pebble", "-config", "pebble.json", "-dnsserver", f"127.0.0.1:{names}", "-strict"],
            home,
            {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0"},
            ready=lambda _: answers(api) and answers(roots),
        )
        return cls(program, f"https://localhost:{api}/dir", home / "cert.pem", f"https://127.0.0.1:{roots}/roots/0")

    def root(self) -> Path:
        """Fetch the certificate that vouches for what it issues."""
        context = ssl.create_default_context(cafile=str(self.trust))
        with urllib.request.urlopen(self.roots, context=context, timeout=10) as answer:
            path = self.trust.with_name("root.pem")
            path.write_bytes(answer.read())
        return path

    def issued(self) -> int:
        """Count its certificates."""
        return self.program.said().count("Issued certificate serial")

    def orders(self) -> int:
        """Count what it was asked for."""
        return self.program.said().count("Added order")
