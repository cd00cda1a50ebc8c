"""TLS on a descriptor of the pump: the handshake as an entry, then a session that flows read and write.

Twisted's TLS transports cannot half-close, and a proxied stream must, so a leg drives OpenSSL itself. After
close_notify in one direction the other one goes on, as TLS 1.3 allows (RFC 8446 section 6.1). An end of the TCP
stream without close_notify is a reset, never an end of file: nobody on the path can cut a download short unnoticed.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from OpenSSL import SSL

from layer8.net.flow import CHUNK
from layer8.net.pump import Pump

RECORD = 1 << 14
"""Most bytes of plaintext in one record (RFC 8446 section 5.1)."""
SEALED = CHUNK + 4096
"""Bytes asked of OpenSSL at once: a chunk and what its records add to it."""
_BOTH = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class _Cut(ConnectionResetError):
    """The TCP stream has ended, and the TLS session has not."""


class Ticket:
    """The last session with one peer, which the next handshake may resume: half the work, and no certificate.

    Only sessions of TLS 1.3 that somebody has read from are kept: their peer was looked at in the full handshake at
    their beginning, and nobody else can resume them, since that takes the secret that both had at its end. Each
    resumption agrees on new keys as well (RFC 8446 section 2.2), so a ticket that leaks opens no recording.
    """

    __slots__ = ("session",)

    def __init__(self) -> None:
        """Keep nothing yet."""
        self.session: SSL.Session | None = None


class Leg:
    """One TLS session over `fd`; it is a pump's `Secure` once `done(leg, None)` was called.

    `check` looks at the peer after the handshake and raises what `done(leg, error)` then gets. `first` are bytes of
    the peer that somebody has read already. A `lenient` leg takes an end without close_notify for an end: an HTTP
    server has to (RFC 9112 section 9.8), since requests say themselves where they end. Until `done`, the leg owns
    the descriptor and closes it on failure.
    """

    __slots__ = ("_accepted", "_check", "_done", "_lenient", "_out", "_pump", "_ticket", "_tls", "fd")

    def __init__(
        self,
        pump: Pump,
        fd: int,
        context: SSL.Context,
        *,
        client: bool,
        done: Callable[[Leg, Exception | None], None],
        check: Callable[[SSL.Connection], None] | None = None,
        name: bytes | None = None,
        first: bytes = b"",
        lenient: bool = False,
        ticket: Ticket | None = None,
    ) -> None:
        """Prepare the session; `name` is the SNI to send, `ticket` is what a client resumes.

        It belongs to one context: whoever expects another peer has another one.
        """
        self._pump = pump
        self._done: Callable[[Leg, Exception | None], None] | None = done
        self._check = check
        self._lenient = lenient
        self._ticket = ticket
        self._out = b""
        self._accepted = 0
        self._tls = SSL.Connection(context, None)
        self.fd = fd
        if client:
            if name is not None:
                self._tls.set_tlsext_host_name(name)
            self._tls.set_connect_state()
            if ticket is not None and ticket.session is not None:
                self._tls.set_session(ticket.session)
        else:
            self._tls.set_accept_state()
        if first:
            self._tls.bio_write(first)

    def start(self) -> None:
        """Begin the handshake; `done` may be called before this returns."""
        self._pump.watch(self.fd, self, _BOTH)
        self.ready(self.fd, 0)

    def ready(self, fd: int, events: int) -> None:
        """Go on with the handshake."""
        if self._done is None:
            return
        try:
            self._shake()
            if self._check is not None:
                self._check(self._tls)
        except BlockingIOError:
            return
        except Exception as error:  # OpenSSL's, the socket's, or the check's own: each ends the handshake
            self._finish(error)
            return
        self._finish(None)

    def _shake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except SSL.WantReadError:
                self._collect()
                self._flush()
                self._fill()
            except SSL.Error:
                self._collect()
                self._flush()  # the alert that says why
                raise
            else:
                self._collect()
                self._flush()
                return

    def cancel(self) -> None:
        """Give up silently and close; does nothing once the handshake has ended."""
        if self._done is not None:
            self._done = None
            self._pump.close_fd(self.fd)

    def abandon(self) -> None:
        """Give up and say so, unless the handshake has ended: then the descriptor is its owner's."""
        if self._done is not None:
            self._finish(ConnectionAbortedError("the handshake was given up"))

    def _finish(self, error: Exception | None) -> None:
        done, self._done, self._check = self._done, None, None
        if error is not None:
            self._pump.close_fd(self.fd)
            if self._ticket is not None:
                self._ticket.session = None
        if done is not None:
            done(self, error)

    @property
    def alpn(self) -> bytes:
        """The application protocol that was agreed, or b""."""
        return self._tls.get_alpn_proto_negotiated()

    # What the pump's flows call.

    def recv(self, size: int) -> bytes:
        """Give up to `size` bytes of plaintext; b"" after close_notify, `OSError` for anything broken."""
        while True:
            try:
                data = self._tls.recv(size)
            except SSL.WantReadError:
                try:
                    self._fill()
                except _Cut:
                    if self._lenient:
                        return b""
                    raise
            except SSL.ZeroReturnError:
                return b""
            except SSL.Error as error:
                raise ConnectionResetError("TLS session broken") from error
            else:
                if self._ticket is not None:
                    self._keep()
                return data if len(data) < RECORD else self._gather(data, size)

    def _gather(self, data: bytes, size: int) -> bytes:
        """Add what else has come to a full record: one write for four of them costs less than four."""
        parts, missing = [data], size - len(data)
        try:
            while missing > 0:
                parts.append(self._tls.recv(missing))
                missing -= len(parts[-1])
        except SSL.Error:
            pass  # nothing more for now; anything else says so again when it is asked next
        return b"".join(parts)

    def _keep(self) -> None:
        """Keep the session: its ticket comes before the first data."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None and self._tls.get_protocol_version() == SSL.TLS1_3_VERSION:
            ticket.session = self._tls.get_session()

    def send(self, data: bytes) -> int:
        """Take some of `data` and say how much; after "not now", call again with the same data."""
        if not self._accepted:
            try:
                self._accepted = self._tls.send(data)
            except SSL.WantReadError as error:
                raise BlockingIOError from error
            except SSL.Error as error:
                raise ConnectionResetError("TLS session broken") from error
            self._collect()
        self._flush()
        accepted, self._accepted = self._accepted, 0
        return accepted

    def finish(self) -> None:
        """Send close_notify, once; "not now" means call again."""
        if not self._tls.get_shutdown() & SSL.SENT_SHUTDOWN:
            try:
                self._tls.shutdown()
            except SSL.Error as error:
                raise ConnectionResetError("TLS session broken") from error
            self._collect()
        self._flush()

    def goodbye(self, words: bytes) -> bytes:
        """Give the ciphertext of some last words and close_notify, for whoever writes it and closes; b"" if broken."""
        try:
            if words:
                self._tls.send(words)
            self._tls.shutdown()
        except SSL.Error:
            return b""
        self._collect()
        out, self._out = self._out, b""
        return out

    def _collect(self) -> None:
        """Fetch the ciphertext that OpenSSL wants to send."""
        try:
            while True:
                data = self._tls.bio_read(SEALED)
                self._out = self._out + data if self._out else data
                if len(data) < SEALED:
                    return
        except SSL.WantReadError:
            return

    def _flush(self) -> None:
        while self._out:
            sent = os.write(self.fd, self._out)
            self._out = self._out[sent:] if sent < len(self._out) else b""

    def _fill(self) -> None:
        data = os.read(self.fd, CHUNK)
        if not data:
            raise _Cut("the connection ended without close_notify")
        self._tls.bio_write(data)
