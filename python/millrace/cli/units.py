"""Figures as people read them."""

from __future__ import annotations


def bytes_text(count: float) -> str:
    """
    Return a size with a binary unit.

    Examples:
        >>> bytes_text(512)
        '512 B'
        >>> bytes_text(64 << 20)
        '64.0 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def seconds_text(seconds: float) -> str:
    """
    Return a duration with a unit that keeps three digits.

    Examples:
        >>> seconds_text(0.000172)
        '172 us'
        >>> seconds_text(0.0314)
        '31.4 ms'
    """
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.2f} s"
