"""The pipeline in real processes on simulated devices, when nothing goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ensemble_runtime.pipeline.port import OverloadedError, RequestTooLargeError, Verdict


async def mixed_requests(client: Any) -> dict[str, int]:
    random = np.random.default_rng(1)

    async def one_client() -> None:
        for _ in range(12):
            await client.ask_and_check(int(random.integers(1, 41)), priority=int(random.integers(0, 2)))

    await asyncio.gather(*(one_client() for _ in range(16)))
    await client.settled()
    rows = {member.name: sum(cell.rows for cell in client.cells(member.name)) for member in client.config.members}
    assert len(set(rows.values())) == 1, f"every member sees every row once: {rows}"
    return {f"{cell.device}/{cell.member}": cell.batches for cell in client.batcher.health().cells}


@pytest.mark.parametrize("hosting", ["PerCell", "PerDevice"])
def test_every_row_returns_to_its_own_request(
    run: Callable[..., Any], simulated: Callable[..., Any], hosting: str
) -> None:
    cells = [("s0", "a", 3), ("s1", "a", 16), ("s1", "b", 64), ("s0", "c", 5), ("s2", "a", 7)]
    config = simulated(["a", "b", "c"], cells, 0.0005, serving={"hosting": hosting, "queueRows": 2048})
    batches = run(config, "mixed_requests")
    # A cell gives way to a member of its device that is further behind, for ever if need be.
    idle = [cell for cell, count in batches.items() if not count]
    assert not idle or idle == ["s0/a"], f"a cell stood idle: {batches}"


async def whole_requests(client: Any) -> dict[str, int]:
    async def one_client() -> None:
        for _ in range(15):
            await client.ask_and_check(8)

    await asyncio.gather(*(one_client() for _ in range(16)))
    return {f"{cell.device}/{cell.member}": cell.batches for cell in client.batcher.health().cells}


@pytest.mark.parametrize("hosting", ["PerCell", "PerDevice"])
def test_a_busy_device_leaves_a_member_to_the_device_that_has_time(
    run: Callable[..., Any], simulated: Callable[..., Any], hosting: str
) -> None:
    cells = [("busy", "a", 8), ("busy", "b", 8), ("busy", "c", 8), ("free", "c", 8)]
    seconds = {"a": 0.004, "b": 0.004, "c": 0.007}
    batches = run(simulated(["a", "b", "c"], cells, seconds, serving={"hosting": hosting}), "whole_requests")
    # Giving way so and so often only, it would take one of nine.
    assert batches["busy/c"] < batches["free/c"] / 12, batches


async def full_pipeline(client: Any) -> None:
    batcher, shape = client.batcher, [(4,)]
    leases = [batcher.lease(1, shape) for _ in range(4)]
    with pytest.raises(OverloadedError) as refused:
        batcher.lease(1, shape)
    assert refused.value.retry_after > 0
    with pytest.raises(RequestTooLargeError):  # never, rather than not now
        batcher.lease(17, shape)
    for lease in leases:
        batcher.release(lease)
    whole = batcher.lease(16, shape)
    with pytest.raises(OverloadedError):
        batcher.lease(1, shape)
    batcher.release(whole)
    assert batcher.in_flight == 0
    await asyncio.gather(*(client.ask_and_check(4) for _ in range(4)))


def test_a_full_pipeline_refuses_and_recovers(run: Callable[..., Any], simulated: Callable[..., Any]) -> None:
    run(simulated(serving={"queueRequests": 4, "queueRows": 16}), "full_pipeline")


async def late_members(client: Any) -> None:
    answer = await client.ask(client.rows(3), timeout=0.1)
    assert answer.outcome.verdict is Verdict.TIMED_OUT
    assert answer.outcome.missing == {"slow": "did not answer in time"}

    partial = await client.ask_and_check(3, min_members=1, deadline=0.1)
    assert partial.outcome.verdict is Verdict.PARTIAL
    assert partial.outcome.missing == {"slow": "did not answer in time"}
    assert set(partial.members) == {"fast"}

    # A deadline that comes after the request's time counts when that is over.
    partial = await client.ask_and_check(3, min_members=1, deadline=60, timeout=0.1)
    assert partial.outcome.missing == {"slow": "did not answer in time"}
    answer = await client.ask(client.rows(3), min_members=2, deadline=60, timeout=0.1)
    assert answer.outcome.verdict is Verdict.TIMED_OUT

    # Two of two members by a deadline that only one meets: the deadline alone is no answer.
    complete = await client.ask_and_check(3, min_members=2, deadline=0.1, timeout=20)
    assert complete.outcome.verdict is Verdict.COMPLETE
    # What the body took on its way is part of both times: here there is nothing left of them.
    answer = await client.ask(client.rows(3), timeout=3600, age=3600.0)
    assert answer.outcome.verdict is Verdict.TIMED_OUT
    partial = await client.ask_and_check(3, min_members=1, deadline=600, age=600.0, timeout=3600)
    assert partial.outcome.missing == {"slow": "did not answer in time"}
    await client.settled()


def test_late_members_are_named_or_left_out(run: Callable[..., Any], simulated: Callable[..., Any]) -> None:
    run(simulated(["fast", "slow"], seconds={"slow": 0.6}), "late_members")


async def cancel_now_and_then(client: Any) -> int:
    random = np.random.default_rng(2)
    cancelled = 0

    async def one_client() -> None:
        nonlocal cancelled
        for _ in range(40):
            if random.random() < 0.5:
                await client.ask_and_check(int(random.integers(1, 12)))
                continue
            lease, future = client.submit(client.rows(int(random.integers(1, 12))))
            for _ in range(int(random.integers(0, 6))):
                await asyncio.sleep(0)
            if random.random() < 0.7:
                await asyncio.sleep(random.random() * 0.004)
            cancelled += not future.done()
            client.batcher.cancel(lease)
            assert client.batcher.in_flight >= 0

    await asyncio.gather(*(one_client() for _ in range(8)))
    await client.settled()
    await client.ask_and_check(client.batcher.max_rows)  # every row is free again
    return cancelled


def test_cancelled_requests_give_everything_back(run: Callable[..., Any], simulated: Callable[..., Any]) -> None:
    cells = [("s0", "a", 3), ("s1", "a", 8), ("s1", "b", 64)]
    config = simulated(["a", "b"], cells, 0.0005, serving={"queueRows": 256})
    assert run(config, "cancel_now_and_then") > 20


async def delayed_batches(client: Any) -> None:
    def batches() -> int:
        return sum(cell.batches for cell in client.cells("a"))

    async with asyncio.timeout(5):  # half the delay
        await client.ask_and_check(8)  # full: there is nothing to wait for
        assert batches() == 1
        await asyncio.gather(client.ask_and_check(4), client.ask_and_check(4))
        assert batches() == 2
        first = asyncio.create_task(client.ask_and_check(6))
        await asyncio.sleep(0.1)
        assert not first.done()
        await client.ask_and_check(2)
        await first
        assert batches() == 3


def test_a_batch_delay_ends_when_the_batch_is_full(run: Callable[..., Any], simulated: Callable[..., Any]) -> None:
    run(simulated(["a"], serving={"batchDelayMs": 10_000}), "delayed_batches")


async def two_at_once(client: Any) -> None:
    for turn in range(1, 4):
        both = [asyncio.create_task(client.ask_and_check(2)) for _ in range(2)]
        if turn == 2:  # not in one turn of the loop
            await asyncio.sleep(0.05)
        await asyncio.gather(*both)
        assert [cell.batches for cell in client.cells("a")] == [turn, turn], "one cell ran both, the other stood idle"
        await client.until(lambda: all(client.batcher._arena.idle))


def test_no_lock_step(run: Callable[..., Any], simulated: Callable[..., Any]) -> None:
    run(simulated(["a"], [("s0", "a", 64), ("s1", "a", 64)], 0.2), "two_at_once")


async def one_in_a_hurry(client: Any) -> list[str]:
    order: list[str] = []

    async def ask(name: str, priority: int) -> None:
        await client.ask_and_check(1, priority=priority)
        order.append(name)

    normal = [asyncio.create_task(ask("normal", 0)) for _ in range(10)]
    await asyncio.sleep(0)
    await asyncio.gather(ask("urgent", 1), *normal)
    return order


def test_urgent_requests_overtake(run: Callable[..., Any], simulated: Callable[..., Any]) -> None:
    order = run(simulated(["a"], [("s0", "a", 1)], 0.03), "one_in_a_hurry")
    assert order.index("urgent") <= 2


async def shared_device(client: Any) -> float:
    started = asyncio.get_running_loop().time()
    await client.ask_and_check(1)
    return asyncio.get_running_loop().time() - started


@pytest.mark.parametrize("hosting", ["PerCell", "PerDevice"])
def test_a_simulated_device_runs_one_batch_at_a_time(
    run: Callable[..., Any], simulated: Callable[..., Any], hosting: str
) -> None:
    config = simulated(["a", "b"], [("s0", "a", 8), ("s0", "b", 8)], 0.1, serving={"hosting": hosting})
    assert run(config, "shared_device") >= 0.2


async def shadowed(client: Any) -> None:
    await client.ask_and_check(3)
    (shadow,) = client.cells("shadow")
    assert shadow.batches == 0, "the answer waited for the shadow"
    await client.settled()
    assert client.cells("shadow")[0].rows == 3, "the shadow has not seen the request"
    for _ in range(40):  # far more than the pipeline holds
        await client.ask_and_check(1)
    await client.settled()
    await client.ask_and_check(client.batcher.max_rows)


def test_nobody_waits_for_a_shadow(run: Callable[..., Any], simulated: Callable[..., Any]) -> None:
    members = ["a", {"name": "shadow", "shadow": True}]
    serving = {"queueRequests": 8, "queueRows": 64}
    run(simulated(members, [("s0", "a", 64), ("s1", "shadow", 4)], {"shadow": 0.3}, serving=serving), "shadowed")


async def outputs_of_members(client: Any) -> None:
    answer = await client.ask_and_check(5, disagreement=True)
    assert set(answer.members) == {"a", "b", "c"}
    # Columns 0, 1 and 2 are added to the same numbers: their variance is 2/3 everywhere.
    np.testing.assert_allclose(answer.disagreement["variance"], np.full(5, 2 / 3), rtol=1e-4)


def test_members_outputs_and_disagreement(run: Callable[..., Any], simulated: Callable[..., Any]) -> None:
    run(simulated(["a", "b", "c"]), "outputs_of_members")
