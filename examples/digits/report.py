"""The demo's tables: who is how good, who runs where, and how fast all of it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

BAR_FROM, BAR_TO, BAR_WIDTH = 0.90, 1.0, 30


@dataclass(frozen=True)
class Accuracies:
    """How many of the held-out images are taken for the digit they show, from 0 to 1; members and formats by name."""

    images: int
    ensemble: float
    members: Mapping[str, float]
    formats: Mapping[str, str]

    @property
    def ensemble_is_best(self) -> bool:
        return self.ensemble > max(self.members.values())

    @property
    def a_member_is_better(self) -> bool:
        return self.ensemble < max(self.members.values())


@dataclass(frozen=True)
class Findings:
    """What the demo found out."""

    accuracies: Accuracies
    plan: Mapping[str, Any]
    """As `ensemblectl plan -o json` writes it."""
    rows_per_second: float


def report(findings: Findings) -> RenderableType:
    return Group("", accuracy(findings.accuracies), "", _matrix(findings.plan), "", _throughput(findings))


def accuracy(found: Accuracies) -> Table:
    table = _table(f"Accuracy on {found.images} held-out images")
    table.add_column("member")
    table.add_column("format")
    table.add_column("accuracy", justify="right")
    table.add_column(f"{BAR_FROM:.0%} to {BAR_TO:.0%}", width=BAR_WIDTH)
    for member, share in found.members.items():
        table.add_row(member, found.formats[member], f"{share:.2%}", _bar(share))
    table.add_section()
    style = "bold red" if found.a_member_is_better else "bold green"
    table.add_row("ensemble", "", f"{found.ensemble:.2%}", _bar(found.ensemble), style=style)
    return table


def _bar(right: float) -> Text:
    share = (right - BAR_FROM) / (BAR_TO - BAR_FROM)
    return Text("█" * round(BAR_WIDTH * min(max(share, 0), 1)))


def _matrix(plan: Mapping[str, Any]) -> Table:
    bottleneck = plan["bottleneck"]
    table = _table("Allocation matrix: batch size, and share of the device's time at full rate")
    table.caption = f"* bottleneck: device {bottleneck['device']}, member {bottleneck['member']}"
    table.add_column("device")
    for member in plan["members"]:
        table.add_column(member, justify="right")
    table.add_column("in all", justify="right")
    for device in plan["devices"]:
        cells = [
            f"{batch} [dim]{share:.0%}[/]" if batch else "[dim]·[/]"
            for batch, share in zip(device["batches"], device["shares"], strict=True)
        ]
        mark = " [yellow]*[/]" if device["name"] == bottleneck["device"] else ""
        table.add_row(f"{device['name']} ({device['type']}){mark}", *cells, f"{sum(device['shares']):.0%}")
    return table


def _throughput(findings: Findings) -> str:
    measured, plan = findings.rows_per_second, findings.plan
    return (
        f"[bold]Throughput[/]: {measured:,.0f} images/s, HTTP and the client on this machine included.\n"
        f"The plan reckons with {plan['rate']:,.0f} for the members alone, "
        f"{plan['gain']:.2f} times what one worker a member gives."
    )


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="bold", caption_justify="left")
