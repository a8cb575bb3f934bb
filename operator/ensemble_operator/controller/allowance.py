"""What one cycle may take away."""

from __future__ import annotations


class Allowance:
    """How many pods a cycle may still delete."""

    def __init__(self, most: int) -> None:
        self._left = most
        self.short = False
        """Whether somebody got less than they asked for."""

    def take(self, count: int) -> int:
        """As many of these as there are left."""
        taken = min(count, self._left)
        self._left -= taken
        self.short |= taken < count
        return taken
