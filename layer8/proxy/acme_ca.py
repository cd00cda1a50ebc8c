"""An authority that issues certificates (RFC 8555), by certbot's `acme` library: every call blocks, for threads only.

Each call is a request or two of at most `TIME` seconds. What goes wrong is a `Refused` that says whose fault it is.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from acme import challenges, client, crypto_util, errors, messages
from attrs import define, field, frozen
from josepy.errors import Error as JoseError
from josepy.jwa import ES256
from josepy.jwk import JWK

from layer8 import __version__
from layer8.core.errors import Layer8Error

TIME: Final = 10  # seconds for the answer to one request
FINAL_TIME: Final = 1.2  # seconds in one call for an order that is being signed
DETAIL: Final = 200  # characters of the authority's own words that are shown to operators
HTTP: Final = "http-01"
TLS_ALPN: Final = "tls-alpn-01"

T = TypeVar("T")


class Refused(Layer8Error):
    """No certificate; `code` is a word of RFC 8555 section 6.7 or ours, `authority` says that no host is to blame."""

    def __init__(self, code: str, detail: str = "", *, authority: bool = False) -> None:
        """Keep the authority's words printable and short."""
        shown = ascii(detail)[1:-1][:DETAIL]
        super().__init__(f"{code}: {shown}" if shown else code)
        self.code = code
        self.authority = authority


@challenges.ChallengeResponse.register
class TLSALPN01Response(challenges.KeyAuthorizationChallengeResponse):
    """The answer to a tls-alpn-01 challenge, which the library has not got any more."""

    typ = TLS_ALPN


@challenges.Challenge.register
class TLSALPN01(challenges.KeyAuthorizationChallenge):
    """A tls-alpn-01 challenge (RFC 8737)."""

    response_cls = TLSALPN01Response
    typ = TLS_ALPN

    def validation(self, account_key: JWK, **kwargs: Any) -> bytes:
        """Give the digest that the certificate has to show."""
        return hashlib.sha256(self.key_authorization(account_key).encode()).digest()


@frozen
class Wanted:
    """What a challenge asks for: under `token`, the text `proof` over HTTP, or its digest in a certificate."""

    kind: str
    token: str
    proof: str = field(repr=False)

    @property
    def digest(self) -> bytes:
        """What a certificate has to show."""
        return hashlib.sha256(self.proof.encode()).digest()


@define(eq=False)
class Order:
    """One certificate on its way; `wanted` is None when the authority needs no proof this time."""

    resource: messages.OrderResource
    authorization: messages.AuthorizationResource
    challenge: messages.ChallengeBody | None
    wanted: Wanted | None


class Authority:
    """One account at one authority."""

    def __init__(self, directory: str, account_key: bytes, email: str, trust: str) -> None:
        """Take the directory's URL and the account's key (PEM); `trust` is a PEM file, "" the system's authorities."""
        self._directory = directory
        self._email = email
        self._key = JWK.load(account_key)
        self._net = client.ClientNetwork(
            self._key,
            alg=ES256,
            verify_ssl=trust or True,  # type: ignore[arg-type]  # requests takes a path as well
            user_agent=f"layer8/{__version__}",
            timeout=TIME,
        )
        self._client: client.ClientV2 | None = None

    def _account(self) -> client.ClientV2:
        if self._client is None:
            made = client.ClientV2(client.ClientV2.get_directory(self._directory, self._net), self._net)
            wanted = messages.NewRegistration.from_data(
                email=self._email or None,
                terms_of_service_agreed=True,
            )
            try:
                made.new_account(wanted)
            except errors.ConflictError as known:  # this is how the library says that the account exists
                self._net.account = messages.RegistrationResource(uri=known.location, body=messages.Registration())
            self._client = made
        return self._client

    def order(self, host: str, key: bytes, kinds: Sequence[str]) -> Order:
        """Ask for a certificate for one host with a key (PEM); `kinds` are the challenges that we can answer."""
        account = _asked(self._account, authority=True)
        request = crypto_util.make_csr(key, [host])
        resource = _asked(lambda: account.new_order(request))
        authorization = resource.authorizations[0]
        if authorization.body.status == messages.STATUS_VALID:
            return Order(resource, authorization, None, None)
        offered = {body.chall.typ: body for body in authorization.body.challenges}
        kind = next((kind for kind in kinds if kind in offered), None)
        if kind is None:
            raise Refused("no_challenge", f"offered are {', '.join(sorted(offered))}")
        found = offered[kind]
        wanted = Wanted(kind, found.chall.encode("token"), found.chall.key_authorization(self._key))
        return Order(resource, authorization, found, wanted)

    def answer(self, order: Order) -> None:
        """Let the authority look at what was put up."""
        account, challenge = self._account(), order.challenge
        if challenge is not None:
            _asked(lambda: account.answer_challenge(challenge, challenge.chall.response(self._key)))

    def proven(self, order: Order) -> bool:
        """Say whether the authority has seen the proof; False is not yet."""
        account = self._account()
        seen, _ = _asked(lambda: account.poll(order.authorization))
        status = seen.body.status
        if status in (messages.STATUS_PENDING, messages.STATUS_PROCESSING):
            return False
        if status == messages.STATUS_VALID:
            return True
        problem = next((body.error for body in seen.body.challenges if body.error is not None), None)
        raise Refused("unauthorized", "not proven") if problem is None else _refused(problem)

    def finish(self, order: Order) -> None:
        """Ask for the signature."""
        account = self._account()

        def ask() -> None:
            try:
                order.resource = account.begin_finalization(order.resource)
            except messages.Error as error:
                if error.code != "orderNotReady":  # then `certificate` asks again
                    raise

        _asked(ask)

    def certificate(self, order: Order) -> bytes | None:
        """Give the chain (PEM), or None if it is not there yet; takes about a second."""
        account = self._account()

        def ask() -> bytes | None:
            until = datetime.datetime.now() + datetime.timedelta(seconds=FINAL_TIME)
            try:
                done = account.poll_finalization(order.resource, until)
            except errors.TimeoutError:
                return None
            return done.fullchain_pem.encode()

        return _asked(ask)


def _asked(ask: Callable[[], T], *, authority: bool = False) -> T:
    """Ask, and turn what the library raises into `Refused`."""
    try:
        return ask()
    except messages.Error as error:
        raise _refused(error, authority=authority) from error
    except errors.IssuanceError as error:
        raise _refused(error.error) from error
    except OSError as error:  # all of `requests`
        raise Refused("unreachable", type(error).__name__, authority=True) from error
    except (errors.Error, JoseError, ValueError, KeyError, AttributeError, TypeError) as error:
        # Nonsense instead of an answer; the library checks little before it uses what came.
        raise Refused("nonsense", type(error).__name__, authority=True) from error


def _refused(problem: messages.Error, *, authority: bool = False) -> Refused:
    code = problem.code if problem.code in messages.ERROR_CODES else "refused"
    general = authority or code in ("rateLimited", "serverInternal", "badNonce", "userActionRequired")
    return Refused(str(code), problem.detail or "", authority=general)
