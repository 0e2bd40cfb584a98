"""What every page is made with: its tables, and numbers with as many digits as they are worth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["rounded", "table"]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown of a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def rounded(value: float) -> float:
    """To four significant digits."""
    return float(f"{value:.4g}")
