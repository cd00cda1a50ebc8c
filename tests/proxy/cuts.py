"""Feeds sniffers at every cut and compares what they say."""

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from itertools import pairwise

from hypothesis import strategies as st

from layer8.proxy.sniff import Found, Outcome, Refused, Sniffer

Make = Callable[[], Sniffer]
Summary = tuple[object, ...] | None


def summary(outcome: Outcome | None) -> Summary:
    """An outcome as something that compares."""
    match outcome:
        case Found(scheme, host, alpn):
            return (scheme, host, alpn)
        case Refused(reason, answer):
            return (reason, answer)
        case _:
            return None


def shown(outcome: Outcome | None) -> str:
    """An outcome as the tables write it, with the host after A."""
    match outcome:
        case Found(_, None, _):
            return "D"
        case Found(_, host, _):
            return f"A {host}"
        case Refused(_, b""):
            return "X"
        case Refused(_, answer):
            return answer[9:12].decode()
        case _:
            return "more"


def run(make: Make, pieces: Iterable[bytes], most: int) -> Outcome | None:
    """Feed the pieces until there is an outcome; check what must hold at every step."""
    sniffer = make()
    fed = b""
    for piece in pieces:
        outcome = sniffer.feed(piece)
        fed += piece
        if outcome is None and len(fed) >= most:
            raise AssertionError(f"{len(fed)} bytes are kept and nothing is decided")
        if sniffer.work > 2 * len(fed):
            raise AssertionError(f"{sniffer.work} bytes of work for {len(fed)} of input")
        if outcome is not None:
            if sniffer.data != fed:
                raise AssertionError("the bytes kept are not the bytes fed")
            return outcome
    if sniffer.data != fed:
        raise AssertionError("the bytes kept are not the bytes fed")
    return None


def run_bytewise(make: Make, data: bytes, most: int) -> Outcome | None:
    """Feed one byte at a time; what is kept is compared by its hash at the end."""
    sniffer = make()
    for at in range(len(data)):
        outcome = sniffer.feed(data[at : at + 1])
        if sniffer.work > 2 * (at + 1):
            raise AssertionError(f"{sniffer.work} bytes of work for {at + 1} of input")
        if outcome is not None or at + 1 >= most:
            if sha256(sniffer.data).digest() != sha256(data[: at + 1]).digest():
                raise AssertionError("the bytes kept are not the bytes fed")
            return outcome
    return None


def at_every_cut(make: Make, data: bytes, most: int) -> Outcome | None:
    """Give the outcome, the same in one piece, at every split into two and byte by byte."""
    whole = run(make, [data], most)
    wanted = summary(whole)
    for at in range(1, len(data)):
        two = run(make, [data[:at], data[at:]], most)
        if summary(two) != wanted:
            raise AssertionError(f"cut at {at}: {two} and not {whole}")
    single = run_bytewise(make, data, most)
    if summary(single) != wanted:
        raise AssertionError(f"byte by byte: {single} and not {whole}")
    return whole


@st.composite
def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The bytes cut at any places, empty pieces included."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[start:end] for start, end in pairwise([0, *places, len(data)])]


@st.composite
def mutated(draw: st.DrawFn, bases: Sequence[bytes]) -> bytes:
    """One of the bases with up to five bytes changed, left out or put in."""
    data = bytearray(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data)))
        what = draw(st.sampled_from(("change", "drop", "insert")))
        if what == "drop":
            del data[at : at + draw(st.integers(1, 4))]
        elif what == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=4))
        elif at < len(data):
            data[at] = draw(st.one_of(st.integers(0, 255), st.sampled_from(b"\r\n\x00 :.\t")))
    return bytes(data)


def typed(make: Make, parts: Sequence[bytes], most: int) -> Outcome | None:
    """Feed noise: an outcome or none, the same as in one piece, and never more kept than `most`."""
    outcome = run(make, parts, most)
    whole = run(make, [b"".join(parts)], most)
    if summary(outcome) != summary(whole):
        raise AssertionError(f"{outcome} and not {whole}")
    return outcome
