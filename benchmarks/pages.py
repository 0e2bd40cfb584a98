"""What every page is made with: its tables, and numbers with as many digits as they are worth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["as_megabytes", "as_milliseconds", "as_multiple", "as_seconds", "counted", "rounded", "table"]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown of a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def rounded(value: float) -> float:
    """To four significant digits."""
    return float(f"{value:.4g}")


def _short(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def counted(count: float | None, noun: str) -> str:
    """A number of things, in words where there is none."""
    return f"{count:g} {noun}{'s' * (count != 1)}" if count else f"no {noun}"


def as_seconds(seconds: float | None) -> str:
    """Two digits with their unit; a dash where there is no number."""
    return "-" if seconds is None else f"{seconds:.2g} s"


def as_milliseconds(seconds: float | None) -> str:
    """Seconds in ms."""
    return "-" if seconds is None else f"{_short(1e3 * seconds)} ms"


def as_megabytes(size: float | None, unit: str = " MB") -> str:
    """Bytes in MB of 10^6."""
    return "-" if size is None else f"{_short(size / 1e6)}{unit}"


def as_multiple(ratio: float | None) -> str:
    """A ratio such as 2.5x."""
    return "-" if ratio is None else f"{_short(ratio)}x"
