"""The schedule of a partition as one page without scripts or outside resources: bars, the curve, the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ensemble_operator.cli.partition_chart import colour

_WIDTH, _LANE = 1000, 34
_MIB = 2**20


def page(name: str, found: Mapping[str, Any]) -> str:
    """A schedule as HTML."""
    devices = [f"{device['name']} ({device['type']})" for device in found["devices"]]
    rows = [
        (f"all on {device}", base) for device, base in zip(devices, found["baselines"], strict=True) if base is not None
    ]
    rows.append(("chosen", found["choice"]))
    body = "".join(
        f"<tr><th>{escape(title)}</th><td>{point['makespanMs']:.3f}</td><td>{point['scarceBytes'] / _MIB:.2f}</td>"
        f"<td>{point['otherBytes'] / _MIB:.2f}</td></tr>"
        for title, point in rows
    )
    heads = "".join(f"<th>{escape(h)}</th>" for h in ("", "ms", f"MiB on {devices[0]}", f"MiB on {devices[1]}"))
    gap = f"<p>{above_best(found['gap'])}.</p>" if "gap" in found else ""
    simulated = f"<p>{escape(devices[0])} is simulated: its costs were stated, not measured.</p>"
    return _PAGE.format(
        title=escape(name),
        what=f"{escape(found['objective'])}, {found['batchSize']} row(s)",
        table=f"<table><tr>{heads}</tr>{body}</table>",
        note=gap + (simulated if found["simulated"] else ""),
        bars=_bars(devices, found),
        curve=_curve(found["curve"]),
    )


def above_best(gap: Mapping[str, Any]) -> str:
    """How far a schedule is from the best."""
    return f"{gap['fraction']:.2%} above the {'proven best' if gap['proven'] else 'best that was found'}"


def _bars(devices: Sequence[str], found: Mapping[str, Any]) -> str:
    end = max(found["choice"]["makespanMs"], 1e-9)
    scale = _WIDTH / end
    parts = []
    for device, name in enumerate(devices):
        top = device * 2 * _LANE
        parts.append(f'<text x="0" y="{top + 11}">{escape(name)}</text>')
        for bar in found["bars"]:
            if bar["device"] == device:
                width = max((bar["endMs"] - bar["startMs"]) * scale, 0.2)
                told = f"{bar['name']}: {bar['startMs']:.3f} to {bar['endMs']:.3f} ms"
                parts.append(
                    f'<rect x="{bar["startMs"] * scale:.2f}" y="{top + 16}" width="{width:.2f}" height="{_LANE}" '
                    f'fill="{colour(bar["name"])}"><title>{escape(told)}</title></rect>'
                )
    for transfer in found["transfers"]:
        ends = (_LANE + 16, 2 * _LANE + 16)
        y1, y2 = ends if transfer["from"] == 0 else ends[::-1]
        told = f"{transfer['name']}: {transfer['bytes']:,} bytes"
        parts.append(
            f'<line x1="{transfer["startMs"] * scale:.2f}" y1="{y1}" x2="{transfer["endMs"] * scale:.2f}" y2="{y2}">'
            f"<title>{escape(told)}</title></line>"
        )
    height = 4 * _LANE + 4
    parts.append(
        f'<text x="0" y="{height}">0</text><text x="{_WIDTH}" y="{height}" text-anchor="end">{end:.3f} ms</text>'
    )
    return f'<svg viewBox="0 0 {_WIDTH} {height + 4}" width="100%">{"".join(parts)}</svg>'


def _curve(points: Sequence[Mapping[str, Any]]) -> str:
    """Bytes on the scarce device against the makespan."""
    height, left = 260, 60
    last = max(point["makespanMs"] for point in points)
    most = max(1, *(point["scarceBytes"] for point in points))
    at = [
        (left + (_WIDTH / 2 - left) * p["makespanMs"] / last, height - 30 - (height - 60) * p["scarceBytes"] / most)
        for p in points
    ]
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{p["makespanMs"]:.3f} ms, {p["scarceBytes"] / _MIB:.2f} MiB'
        "</title></circle>"
        for (x, y), p in zip(at, points, strict=True)
    )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    axes = (
        f'<text x="0" y="34">{most / _MIB:.1f} MiB</text><text x="0" y="{height - 30}">0</text>'
        f'<text x="{_WIDTH / 2}" y="{height - 8}" text-anchor="end">{last:.3f} ms</text>'
    )
    return f'<svg viewBox="0 0 {_WIDTH} {height}" width="100%"><polyline points="{line}"/>{marks}{axes}</svg>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Partition of {title}</title><style>
body{{font:14px system-ui,sans-serif;margin:2em;color:#1b263b}}table{{border-collapse:collapse;margin:.5em 0}}
th,td{{padding:.2em .8em;text-align:right;font-weight:normal}}th:first-child{{text-align:left}}th{{color:#555}}
svg text{{font-size:11px;fill:#555}}rect{{stroke:#fff;stroke-width:.5}}line{{stroke:#1b263b;stroke-width:.7}}
polyline{{fill:none;stroke:#e67e22;stroke-width:2}}circle{{fill:#e67e22}}
</style></head><body><h1>Partition of {title}</h1><p>{what}</p>
{table}{note}
<h2>Schedule</h2>{bars}
<h2>Memory on the first device against latency</h2>{curve}
</body></html>
"""
