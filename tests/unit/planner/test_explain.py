from __future__ import annotations

import io
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from rich.console import Console

from ensemble_operator.planner.explain import Explanation, curve, explain, one_more, what_if
from ensemble_operator.planner.plan import Plan
from ensemble_operator.planner.problem import Problem
from ensemble_operator.planner.render import heat, html, terminal
from ensemble_operator.planner.solve import make_plan
from ensemble_runtime.errors import ManifestError


@pytest.fixture(scope="module")
def plan(draw: Callable[..., Problem]) -> Plan:
    return make_plan(draw(0), evaluations=300)


@pytest.fixture(scope="module")
def why(plan: Plan) -> Explanation:
    return explain(plan)


def test_accounts_for_every_cell_and_device(plan: Plan, why: Explanation) -> None:
    assert {(c.device, c.member, c.batch_size) for c in why.cells} == {(d.name, m, b) for d, m, b in plan.cells}
    assert all(c.reason for c in why.cells)
    assert len(why.devices) == len(plan.problem.devices)
    assert all(0 <= d.memory_mib <= d.of_mib for d in why.devices)
    for member in plan.problem.members:
        assert sum(c.rate for c in why.cells if c.member == member.name) == pytest.approx(plan.rate, rel=1e-6)


def test_the_worth_of_all_devices_together_is_the_rate(why: Explanation) -> None:
    # Twice the time of every device is twice the rate.
    assert sum(d.worth for d in why.devices) == pytest.approx(1)


def test_one_more_device_never_costs(plan: Plan) -> None:
    more = one_more(plan, evaluations=100)
    assert {m.type for m in more} == {d.type for d in plan.problem.devices}
    assert all(m.gain >= 1 for m in more)
    assert max(m.gain for m in more) > 1.05


def test_what_if_adds_and_removes(plan: Plan) -> None:
    count = len(plan.problem.devices)
    assert len(what_if(plan.problem, {"fast-40g": 2}).devices) == count + 2
    assert len(what_if(plan.problem, {"fast-40g": -1}).devices) == count - 1
    with pytest.raises(ManifestError, match="no 1 devices of type 'fast-41g'"):
        what_if(plan.problem, {"fast-41g": 1})


def test_the_curve_rises(plan: Plan) -> None:
    points = curve(plan.problem, points=4, evaluations=100)
    assert [n for n, _ in points] == sorted({n for n, _ in points})
    assert [r for _, r in points] == sorted(r for _, r in points)


def test_the_heat_map_shows_every_batch_size(plan: Plan) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal(plan))
    text = console.export_text()
    for device, _, batch in plan.cells:
        assert any(device.name in line and str(batch) in line for line in text.splitlines())


def test_the_page_is_well_formed_and_self_contained(plan: Plan, why: Explanation) -> None:
    page = html(plan, why, points=((1, 10.0), (2, 18.0)))
    open_, seen = [], set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.add(tag)
            assert not {"src", "href", "onclick"} & {name for name, _ in attrs}
            if tag != "meta":
                open_.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.add(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_.pop() == tag

    Reader().feed(page)
    assert not open_
    assert {"table", "svg"} <= seen
    assert "script" not in seen
    assert all(member.name in page for member in plan.problem.members)


def test_heat_runs_from_cold_to_hot() -> None:
    assert heat(0) != heat(0.5) != heat(1)
    assert heat(1) == heat(1.4)
