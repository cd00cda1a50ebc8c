"""A row of the two sniffing tables: what a visitor sends, and what becomes of it."""

from itertools import pairwise

from attrs import frozen


@frozen
class Row:
    """`pieces` are TCP segments; `outcome` is A, D, X or an HTTP status; `host` is where A goes."""

    name: str
    pieces: tuple[bytes, ...]
    outcome: str
    host: str = "www.example.com"

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def slug(self) -> str:
        return "".join(c if c.isalnum() else "_" for c in self.name.lower())


def row(name: str, data: bytes, outcome: str = "A", host: str = "www.example.com") -> Row:
    return Row(name, (data,), outcome, host)


def every_byte(data: bytes) -> tuple[bytes, ...]:
    return tuple(data[i : i + 1] for i in range(len(data)))


def cut(data: bytes, *at: int) -> tuple[bytes, ...]:
    borders = [0, *at, len(data)]
    return tuple(data[start:end] for start, end in pairwise(borders))
