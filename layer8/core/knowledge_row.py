"""One row of the table of `layer8.core.knowledge`."""

from __future__ import annotations

from attrs import frozen


@frozen
class Row:
    """What one party of one part learns, and does not, in words for people."""

    part: str
    party: str
    learns: str
    hidden: str
    tests: tuple[str, ...] = ()
    built: bool = True

    @property
    def shown(self) -> str:
        """Say in one phrase what stands behind this row."""
        if not self.built:
            return "not built yet"
        return ", ".join(self.tests) if self.tests else "not shown yet"
