"""Ends of circuits that ask a role something, and remember what it has said."""

from __future__ import annotations

from attrs import define, field


@define(eq=False)
class FakeAsker:
    """`layer8.core.roles.Asker` by hand."""

    circuit: int
    neighbour: bytes | None = None
    alive: bool = True
    destroyed: bool = False
    said: list[tuple[int, bytes]] = field(factory=list)

    @property
    def binding(self) -> bytes:
        return self.circuit.to_bytes(32, "big")

    def answer(self, command: int, data: bytes) -> None:
        self.said.append((command, data))

    def destroy(self) -> None:
        self.destroyed = True
