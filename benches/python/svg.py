"""A small writer of bar charts in SVG: no library, readable in any browser."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDTH = 900
_LABEL = 270
_VALUE = 110
_BAR = 16
_GAP = 6
_GROUP_GAP = 22
_OURS = "#0b7285"
_LIMIT = "#868e96"
_OTHERS = "#e8a33d"


def bar_chart(
    title: str,
    unit: str,
    groups: Mapping[str, Sequence[tuple[str, float, float, float]]],
) -> str:
    """
    Draw horizontal bars in groups, each group on its own scale from zero.

    Args:
        title: What the chart shows.

        unit: What the figures count.

        groups: For each group its bars: name, median, least and most; the range is drawn as a
            thin line over the bar.
    """
    parts: list[str] = []
    y = 44
    for name, bars in groups.items():
        if not bars:
            continue
        parts.append(f'<text x="0" y="{y + 4}" class="g">{escape(name)}</text>')
        y += 14
        most = max(high for _, _, _, high in bars) or 1.0
        for label, median, low, high in bars:
            parts += _bar(y, label, median, low, high, most)
            y += _BAR + _GAP
        y += _GROUP_GAP
    style = (
        "text{font:12px sans-serif;fill:#222}.t{font-size:15px;font-weight:bold}"
        ".g{font-weight:bold}.v{font-variant-numeric:tabular-nums}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 0 {_WIDTH + 20} {y}" '
        f'width="{_WIDTH + 20}" height="{y}" role="img" aria-label="{escape(title)}">'
        f'<style>{style}</style><rect x="-10" width="100%" height="100%" fill="#fff"/>'
        f'<text x="0" y="18" class="t">{escape(title)} ({escape(unit)})</text>'
        f"{''.join(parts)}</svg>\n"
    )


def _bar(y: int, label: str, median: float, low: float, high: float, most: float) -> list[str]:
    scale = (_WIDTH - _LABEL - _VALUE) / most
    middle = y + _BAR / 2
    colour = _OURS if label.startswith("millrace") else _OTHERS
    if "limit" in label or "write" in label:
        colour = _LIMIT
    text_y = y + _BAR - 4
    name = f'<text x="{_LABEL - 8}" y="{text_y}" text-anchor="end">{escape(label)}</text>'
    width = f'width="{max(1.0, median * scale):.1f}" height="{_BAR}"'
    bar = f'<rect x="{_LABEL}" y="{y}" {width} fill="{colour}"/>'
    ends = f'x1="{_LABEL + low * scale:.1f}" x2="{_LABEL + high * scale:.1f}"'
    span = f'<line {ends} y1="{middle}" y2="{middle}" stroke="#222"/>'
    value_x = _LABEL + high * scale + 6
    value = f'<text x="{value_x:.1f}" y="{text_y}" class="v">{median:,.0f}</text>'
    return [name, bar, span, value]
