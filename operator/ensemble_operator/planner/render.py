"""A plan to look at: a heat map for a rich terminal, one self-contained HTML page. Strings only; others print them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ensemble_operator.planner.explain import Explanation, OneMore
from ensemble_operator.planner.plan import Plan

_COLD, _HOT = (27, 38, 59), (230, 126, 34)


def heat(share: float) -> str:
    """A colour between cold and hot, as #rrggbb, for a share of time."""
    part = min(max(share, 0.0), 1.0)
    return "#" + "".join(f"{round(c + (h - c) * part):02x}" for c, h in zip(_COLD, _HOT, strict=True))


def rows(plan: Plan) -> list[tuple[tuple[str, str, str], list[tuple[str, float]], int]]:
    """The matrix as text: ((node, device, type), a (batch, share) for each member, how many devices do the same).

    Devices of one type that do the same are one row once there are more than 32 devices.
    """
    together = len(plan.matrix) > 32
    seen: dict[object, int] = {}
    out: list[tuple[tuple[str, str, str], list[tuple[str, float]], int]] = []
    for device, batches, shares in zip(plan.problem.devices, plan.matrix, plan.shares, strict=True):
        key = (device.type, batches) if together else (device.node, device.name)
        if key in seen:
            name, cells, count = out[seen[key]]
            out[seen[key]] = (name, cells, count + 1)
            continue
        seen[key] = len(out)
        cells = [(str(b) if b else "", s) for b, s in zip(batches, shares, strict=True)]
        out.append(((device.node, device.name, device.type), cells, 1))
    return out


def terminal(plan: Plan) -> str:
    """The matrix in rich's markup: batch sizes on the colour of their share of the device's time."""
    body = rows(plan)
    names = [m.name for m in plan.problem.members]
    heads = [f"{name} ({type_})" + (f" ×{count}" if count > 1 else "") for (_, name, type_), _, count in body]
    left = max(map(len, heads))
    width = max(5, *(min(len(n), 12) for n in names)) + 1
    lines = [" " * left + " " + "".join(_literal(f"{n[: width - 1]:>{width}}") for n in names)]
    for head, (_, cells, _) in zip(heads, body, strict=True):
        drawn = "".join(f"[#ffffff on {heat(s)}]{b or '·':>{width}}[/]" for b, s in cells)
        lines.append(f"{_literal(f'{head:<{left}}')} {drawn} {sum(s for _, s in cells):4.0%}")
    return "\n".join(lines)


def _literal(text: str) -> str:
    return text.replace("[", r"\[")


def html(
    plan: Plan, explanation: Explanation, more: Sequence[OneMore] = (), points: Sequence[tuple[int, float]] = ()
) -> str:
    """One page without scripts or outside resources: figures, matrix, time and memory bars, reasons, the curve."""
    figures = [
        ("predicted", f"{plan.rate:,.1f} rows/s"),
        ("upper bound", f"{plan.bound:,.1f} rows/s ({plan.gap:.2%} above)"),
        ("baseline", f"{plan.baseline_rate:,.1f} rows/s (gain {plan.gain:.2f}×)"),
        ("plan", plan.digest),
    ]
    if plan.p99_seconds is not None:
        figures.insert(1, ("p99", f"{plan.p99_seconds * 1000:,.1f} ms"))
    if plan.goodput is not None:
        figures.insert(1, ("goodput", f"{plan.goodput:,.1f} rows/s"))
    parts = [
        _table(["", ""], figures),
        f"<p>Bottleneck: {escape(explanation.bottleneck)}</p>",
        "<h2>Allocation matrix</h2><p>Batch sizes; the colour is the share of the device's time.</p>",
        _matrix(plan),
        "<h2>Devices</h2>",
        _devices(explanation),
        "<h2>Why</h2>",
        _table(
            ["device", "member", "batch", "rows/s", "why"],
            [(c.device, c.member, str(c.batch_size), f"{c.rate:,.1f}", c.reason) for c in explanation.cells[:500]],
        ),
    ]
    if more:
        parts += ["<h2>One more device</h2>", _table(["type", "rows/s", "gain"], [_one(m) for m in more])]
    if len(points) > 1:
        parts += ["<h2>Throughput against devices</h2>", _curve(points)]
    return _PAGE.format(body="\n".join(parts))


def _one(more: OneMore) -> tuple[str, str, str]:
    return more.type, f"{more.rate:,.1f}", f"{more.gain:.3f}×"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in line) + "</tr>" for line in lines)
    return f"<table><tr>{head}</tr>{body}</table>"


def _matrix(plan: Plan) -> str:
    head = "".join(f"<th>{escape(m.name)}</th>" for m in plan.problem.members)
    lines = []
    for (node, name, type_), cells, count in rows(plan):
        drawn = "".join(f'<td class="cell" style="background:{heat(s)}" title="{s:.1%}">{b}</td>' for b, s in cells)
        many = f" ×{count}" if count > 1 else ""
        lines.append(f"<tr><th>{escape(f'{node}/{name} ({type_}){many}')}</th>{drawn}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"


def _devices(explanation: Explanation) -> str:
    lines = [
        f"<tr><th>{escape(f'{d.node}/{d.name}')}</th><td>{escape(d.type)}</td><td>{_bar(d.time, f'{d.time:.0%}')}</td>"
        f"<td>{_bar(d.memory_mib / max(d.of_mib, 1), f'{d.memory_mib:,} of {d.of_mib:,} MiB')}</td></tr>"
        for d in explanation.devices[:500]
    ]
    return f"<table><tr><th>device</th><th>type</th><th>time</th><th>memory</th></tr>{''.join(lines)}</table>"


def _bar(part: float, text: str) -> str:
    return f'<div class="bar"><div style="width:{min(part, 1.0):.1%}"></div><span>{escape(text)}</span></div>'


def _curve(points: Sequence[tuple[int, float]]) -> str:
    width, height, most, top = 560, 220, points[-1][0], max(r for _, r in points)
    at = [(40 + 500 * n / most, height - 30 - (height - 60) * r / top) for n, r in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{n} devices: {r:,.1f} rows/s</title></circle>'
        f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle">{n}</text>'
        f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{r:,.0f}</text>'
        for (x, y), (n, r) in zip(at, points, strict=True)
    )
    return f'<svg viewBox="0 0 {width} {height}" width="{width}"><polyline points="{line}"/>{marks}</svg>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Allocation plan</title><style>
body{{font:14px system-ui,sans-serif;margin:2em;color:#1b263b}}table{{border-collapse:collapse;margin:.5em 0}}
th,td{{padding:.2em .6em;text-align:left;font-weight:normal}}th{{color:#555}}
.cell{{color:#fff;text-align:right;min-width:2.5em;border:1px solid #fff}}
.bar{{position:relative;width:16em;background:#e5e7eb}}.bar div{{height:1.4em;background:#e67e22}}
.bar span{{position:absolute;left:.4em;top:.1em}}svg text{{font-size:10px}}
polyline{{fill:none;stroke:#e67e22;stroke-width:2}}
</style></head><body><h1>Allocation plan</h1>
{body}
</body></html>
"""
