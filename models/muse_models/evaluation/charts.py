"""Line charts as SVG, by hand: nothing to install, and a diff shows what changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_WIDTH, _HEIGHT = 420, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 120, 28, 40
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#555555")


@dataclass(frozen=True)
class Line:
    """One line; `values` has a value for every position on the horizontal axis."""

    name: str
    values: Sequence[float]


def line_chart(
    path: Path, title: str, positions: Sequence[float], lines: Sequence[Line], top: float, marked: float | None = None
) -> None:
    """Writes a chart from 0 to `top`. `positions` are the values on the horizontal axis, evenly spaced and named as they
    are; `marked` is one of them, shown as the one in use.
    """
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(index: int) -> float:
        return _LEFT + width * (index + 0.5) / len(positions)

    def y(value: float) -> float:
        return _TOP + height * (1 - min(max(value / top, 0), 1))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="16" font-size="13">{escape(title)}</text>',
    ]
    if marked is not None:
        at = x(list(positions).index(marked))
        parts.append(f'<rect x="{at - 9:.1f}" y="{_TOP}" width="18" height="{height}" fill="#eeeeee"/>')
    for tick in range(5):
        value = top * tick / 4
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + width}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#cccccc"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for index, position in enumerate(positions):
        parts.append(f'<text x="{x(index):.1f}" y="{_TOP + height + 16}" text-anchor="middle">{position:g}</text>')
    for number, line in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [(x(index), y(value)) for index, value in enumerate(line.values)]
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="'
            + " ".join(f"{across:.1f},{down:.1f}" for across, down in points) + '"/>'
        )
        parts += [f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>' for across, down in points]
        legend = _TOP + 8 + 18 * number
        parts.append(f'<rect x="{_LEFT + width + 12}" y="{legend - 8}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + width + 26}" y="{legend + 1}">{escape(line.name)}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")
