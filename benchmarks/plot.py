"""The plot in README: CPU time per request of each stack, as an SVG for light and dark mode."""

from html import escape
from pathlib import Path
from typing import Any

WIDTH, LABEL, ROW, BAR, GAP = 760, 210, 26, 16, 46
# Room for the figure to the right of the longest bar.
FIGURE = 150
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 15px }
.quiet { fill: #59636e }
.bar { fill: #9aa4af }
.ours { fill: #1a7f37 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .quiet { fill: #9198a1 }
  .bar { fill: #656c76 }
  .ours { fill: #3fb950 }
}
"""


def write(results: dict[str, Any], path: Path, workloads: dict[str, str], ours: str) -> None:
    """Write one bar chart per workload, one below the other; ``workloads`` maps names to titles."""
    machine = results["machine"]
    parts, top = [], 0
    for name, title in workloads.items():
        block, top = _bars(title, results["workloads"][name], ours, top + GAP)
        parts += block
    note = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['date'][:10]}: median of"
        f" {machine['rounds']} interleaved rounds of {machine['seconds']:g} s; one process each,"
        " on one core"
    )
    height = top + GAP
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' width="{WIDTH}" height="{height}" role="img" aria-labelledby="title">\n'
        f'<title id="title">CPU time per request of Shinkei and of other stacks</title>\n'
        f"<style>{STYLE}</style>\n"
        + "\n".join([*parts, _text(0, height - 10, note, "quiet")])
        + "\n</svg>\n"
    )


def _bars(title: str, peers: dict[str, Any], ours: str, top: int) -> tuple[list[str], int]:
    """Return a chart and the y coordinate where it ends."""
    parts = [_text(0, top - 12, f"{title}: CPU µs per request, lower is better", "title")]
    scale = (WIDTH - LABEL - FIGURE) / max(peer["cpu_us"] for peer in peers.values())
    for name, peer in sorted(peers.items(), key=lambda item: item[1]["cpu_us"]):
        length = max(2, round(peer["cpu_us"] * scale))
        style = "ours" if name == ours else "bar"
        middle = top + ROW // 2 + 4
        times = peer["cpu_us"] / peers[ours]["cpu_us"]
        figure = f"{peer['cpu_us']:.0f}" + ("" if name == ours else f" ({times:.1f}×)")
        place = f'x="{LABEL}" y="{top + (ROW - BAR) // 2}" width="{length}" height="{BAR}"'
        parts += [
            _text(0, middle, peer["title"]),
            f'<rect class="{style}" {place} rx="2"/>',
            _text(LABEL + length + 8, middle, figure, "quiet"),
        ]
        top += ROW
    return parts, top


def _text(x: int, y: int, text: str, style: str = "") -> str:
    given = f' class="{style}"' if style else ""
    return f'<text x="{x}" y="{y}"{given}>{escape(text)}</text>'
