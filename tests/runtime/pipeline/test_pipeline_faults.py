"""Processes of the pipeline killed and stopped under load: right answers, no hang, nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ensemble_runtime.pipeline.port import Verdict

DIED = "died or hung on this request"


class Load:
    """Clients that ask without a pause and check every answer, while the script does harm."""

    def __init__(self, client: Any, clients: int = 8) -> None:
        self.client = client
        self.answers = 0
        self.failures: list[dict[str, str]] = []
        self.stop = False
        self.tasks = [asyncio.create_task(self.ask(np.random.default_rng(i))) for i in range(clients)]

    async def ask(self, random: np.random.Generator) -> None:
        while not self.stop:
            values = self.client.rows(int(random.integers(1, 13)))
            answer = await self.client.ask(values)
            if answer.outcome.answered:
                np.testing.assert_allclose(answer.output, self.client.expected(values), rtol=1e-6)
            else:
                # Only what was in the hands of two processes that were killed may fail, and it says so.
                assert answer.outcome.verdict is Verdict.MEMBER_FAILED
                self.failures.append(answer.outcome.missing)
            self.answers += 1

    async def some_more(self) -> None:
        enough = self.answers + 40
        await self.client.until(lambda: self.answers >= enough or any(task.done() for task in self.tasks))
        for task in self.tasks:
            if task.done():
                await task

    async def end(self) -> None:
        self.stop = True
        await asyncio.gather(*self.tasks)
        await self.client.settled()
        await self.client.ask_and_check(self.client.batcher.max_rows)


def ensemble(simulated: Callable[..., Any], seconds: float = 0.001, **serving: Any) -> Any:
    cells = [("s0", "alone", 8), ("s1", "parallel", 3), ("s2", "parallel", 16)]
    return simulated(["alone", "parallel"], cells, seconds, serving={"queueRows": 512, **serving})


async def kill_one_by_one(client: Any) -> list[dict[str, str]]:
    load = Load(client)
    for role in ("alone", "parallel", "combiner", "alone", "combiner"):
        await load.some_more()
        pid = client.kill(role)
        await client.back(role, pid)
    await load.some_more()
    await load.end()
    assert client.cells("alone")[0].restarts == 2
    return load.failures


@pytest.mark.parametrize("hosting", ["PerCell", "PerDevice"])
def test_requests_survive_the_death_of_a_process(
    run: Callable[..., Any], simulated: Callable[..., Any], hosting: str
) -> None:
    assert run(ensemble(simulated, hosting=hosting), "kill_one_by_one") == []


async def kill_at_random(client: Any) -> list[dict[str, str]]:
    random = np.random.default_rng(3)
    load = Load(client)
    for _ in range(25):
        await asyncio.sleep(random.random() * 0.1)
        for role in random.choice(["alone", "parallel", "combiner"], size=2):
            if client.pid(role):
                with contextlib.suppress(ProcessLookupError):  # killed a moment ago, and not replaced yet
                    client.kill(role)
    await client.until(lambda: client.batcher.health().ready)
    await load.some_more()
    await load.end()
    return load.failures


def test_whoever_is_killed_answers_stay_right(run: Callable[..., Any], simulated: Callable[..., Any]) -> None:
    failures = run(ensemble(simulated), "kill_at_random")
    assert all(reason.startswith(DIED) for failure in failures for reason in failure.values()), failures


async def keep_down(client: Any, role: str) -> None:
    """Kill a process as often as it takes for its next restart to wait for most of a second."""
    for _ in range(3):
        await client.until(lambda: client.pid(role))
        pid = client.kill(role)
        await client.until(lambda pid=pid: client.pid(role) != pid)


async def health_of_the_dying(client: Any) -> None:
    health = client.batcher.health()
    assert health.ready and health.reason == ""
    await keep_down(client, "alone")
    health = client.batcher.health()
    assert not health.ready
    assert health.reason == "no worker is ready for alone"
    assert {cell.member: cell.state for cell in health.cells}["parallel"] == "Ready"
    # One of two data-parallel cells is enough, though.
    late = asyncio.create_task(client.ask_and_check(3))
    await client.until(lambda: client.batcher.health().ready)
    await late
    pid = client.kill("combiner")
    await client.until(lambda: not client.batcher.health().ready or client.pid("combiner") not in (0, pid))
    await client.back("combiner", pid)


def test_health_tells_the_truth(run: Callable[..., Any], simulated: Callable[..., Any]) -> None:
    run(ensemble(simulated), "health_of_the_dying")


async def without_a_member(client: Any) -> int:
    await keep_down(client, "gone")
    partial = 0
    for _ in range(60):  # far more than the pipeline holds
        await client.until(lambda: client.batcher.in_flight < 8)  # the supervisor may be a little late
        answer = await client.ask_and_check(2, min_members=1, deadline=0.01)
        partial += answer.outcome.verdict is Verdict.PARTIAL
    await client.settled()
    return partial


def test_answers_of_a_quorum_do_not_pile_up_behind_a_dead_member(
    run: Callable[..., Any], simulated: Callable[..., Any]
) -> None:
    config = simulated(["gone", "there"], serving={"queueRequests": 8, "queueRows": 64})
    assert run(config, "without_a_member") > 8


async def kill_own_gateway(client: Any) -> str:
    if client.life <= 2:
        Load(client)
        await asyncio.sleep(0.2)
        if client.life == 2:  # and somebody who holds work at the same time
            client.kill("parallel")
            client.kill("alone")
        os.kill(os.getpid(), signal.SIGKILL)
    await client.settled()  # what the cells were computing for the dead is given back
    load = Load(client)
    await load.some_more()
    await load.end()
    return "alive"


def test_a_new_gateway_starts_clean(run: Callable[..., Any], simulated: Callable[..., Any]) -> None:
    assert run(ensemble(simulated, seconds=0.02), "kill_own_gateway") == "alive"


async def killed_behind_a_slow_batch(client: Any) -> tuple[bool, int, int]:
    started = client.batcher._arena.batch_started
    if client.life == 1:
        for _ in range(2):
            client.submit(client.rows(3))
        await client.until(lambda: started[0])
        os.kill(os.getpid(), signal.SIGKILL)
    same_batch, held = bool(started[0]), client.batcher.in_flight
    rest = client.batcher.max_rows - 6
    await client.ask_and_check(rest)  # all that is free, while the slow cell still writes into rows of the dead
    await client.settled()
    await client.ask_and_check(client.batcher.max_rows)
    return same_batch, held, client.cells("slow")[0].restarts


def test_a_new_gateway_waits_for_no_batch(run: Callable[..., Any], simulated: Callable[..., Any]) -> None:
    config = simulated(["slow", "quick"], seconds={"slow": 3.0}, serving={"queueRows": 16})
    assert run(config, "killed_behind_a_slow_batch") == (True, 2, 0)


async def ask_for_ever(client: Any) -> None:
    load = Load(client)
    await load.some_more()
    client.tell("under load")
    await asyncio.gather(*load.tasks)


def test_nothing_outlives_a_killed_supervisor(start: Callable[..., Any], simulated: Callable[..., Any]) -> None:
    running = start(ensemble(simulated), "ask_for_ever")
    assert running.hear() == "under load"
    assert len(running.processes()) == 6  # supervisor, gateway, combiner, three cells
    running.kill()
    running.assert_gone(2.0)
    assert running.exit_code() == -signal.SIGKILL


async def one_slow_request(client: Any) -> str:
    sent = asyncio.create_task(client.ask_and_check(3))
    await client.until(lambda: client.batcher._arena.batch_started[0])
    client.tell("sent")
    await sent
    return "answered"


@pytest.mark.parametrize("everybody", [False, True], ids=["supervisor", "whole group"])
def test_sigterm_answers_what_is_in_flight(
    start: Callable[..., Any], simulated: Callable[..., Any], everybody: bool
) -> None:
    running = start(simulated(["a"], seconds=0.5), "one_slow_request")
    assert running.hear() == "sent"
    if everybody:
        os.killpg(running.process.pid, signal.SIGTERM)
    else:
        running.kill(signal.SIGTERM)
    assert running.hear() == "answered"
    assert running.exit_code() == 0, running.log()
    running.assert_gone()


async def never_done(client: Any) -> None:
    client.tell("ready")
    await asyncio.Event().wait()


def test_a_drain_has_its_limit(start: Callable[..., Any], simulated: Callable[..., Any]) -> None:
    running = start(simulated(["a"], serving={"drainMs": 100}), "never_done")
    assert running.hear() == "ready"
    running.kill(signal.SIGTERM)
    assert running.exit_code(20) == 0, running.log()
    running.assert_gone()


async def stopped_in_a_batch(client: Any) -> dict[str, str]:
    started = client.batcher._arena.batch_started
    poor = asyncio.create_task(client.ask(client.rows(2)))
    await client.until(lambda: started[0])
    later = asyncio.create_task(client.ask_and_check(2))
    first = client.kill("a", signal.SIGSTOP)
    await client.until(lambda: client.pid("a") not in (0, first) and started[0])
    client.kill("a", signal.SIGSTOP)  # its second chance
    answer = await poor
    assert answer.outcome.verdict is Verdict.MEMBER_FAILED
    await later
    await client.ask_and_check(5)
    return answer.outcome.missing


def test_a_process_that_hangs_is_replaced(run: Callable[..., Any], simulated: Callable[..., Any]) -> None:
    config = simulated(["a", "b"], seconds={"a": 0.2}, serving={"memberTimeoutMs": 1000})
    assert run(config, "stopped_in_a_batch") == {"a": DIED}


async def stopped_while_idle(client: Any, role: str) -> None:
    await client.ask_and_check(2)
    await client.back(role, client.kill(role, signal.SIGSTOP))
    await client.ask_and_check(2)


@pytest.mark.parametrize("role", ["a", "combiner"])
def test_a_process_that_is_stopped_while_idle_is_replaced(
    run: Callable[..., Any], simulated: Callable[..., Any], role: str
) -> None:
    run(simulated(serving={"memberTimeoutMs": 300}), "stopped_while_idle", role)


async def dead_combiner(client: Any) -> None:
    """Times out although the combiner is stopped; goes on when it is killed."""
    stopped = client.kill("combiner", signal.SIGSTOP)
    answer = await client.ask(client.rows(2), timeout=0.3)
    assert answer.outcome.verdict is Verdict.TIMED_OUT
    late = asyncio.create_task(client.ask_and_check(2))
    expiring = asyncio.create_task(client.ask_and_check(2, min_members=1, deadline=0.1))
    await asyncio.sleep(0.3)
    os.kill(stopped, signal.SIGKILL)
    await late
    await expiring
    await client.settled()


def test_a_request_ends_in_time_whatever_the_combiner_does(
    run: Callable[..., Any], simulated: Callable[..., Any]
) -> None:
    run(simulated(), "dead_combiner")
