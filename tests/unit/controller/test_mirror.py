import asyncio
import importlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_operator.controller.mirror import difference, follow
from ensemble_operator.controller.worker import DecisionError, Worker

MAPPINGS = st.dictionaries(st.integers(0, 5), st.text(max_size=2), max_size=6)


@given(st.lists(MAPPINGS, max_size=5))
def test_who_follows_the_differences_has_the_same(states):
    mirror, before = {}, {}
    for state in states:
        follow(mirror, difference(before, state))
        before = state
        assert mirror == state


@given(MAPPINGS)
def test_nothing_travels_when_nothing_changed(state):
    assert not difference(state, dict(state)).changed


@pytest.fixture
def deciders(monkeypatch):
    """Functions of a module that other processes can import too."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("sample_deciders")


def test_the_worker_decides_on_the_whole_state_though_only_changes_travel(deciders):
    async def scene():
        worker = Worker(deciders.double_each)
        try:
            assert await worker.decide({"a": 1, "b": 2}, 10) == {"a": 2, "b": 4}
            assert await worker.decide({"a": 1, "c": 3}, 10) == {"a": 2, "c": 6}
        finally:
            worker.close()

    asyncio.run(scene())


def test_it_is_another_process_and_ends_with_close(deciders):
    async def scene():
        worker = Worker(deciders.name_process)
        pid = (await worker.decide({}, 10))["pid"]
        assert pid != os.getpid()
        worker.close()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(scene())


def test_after_a_failure_or_a_death_the_next_question_is_answered(deciders):
    async def scene():
        for make, bad, good in (
            (deciders.refuse_odd, {"x": 1}, {"x": 2}),
            (deciders.die_when_told, {"die": 1}, {}),
        ):
            worker = Worker(make)
            try:
                with pytest.raises(DecisionError):
                    await worker.decide(bad, 10)
                assert await worker.decide(good, 10)
            finally:
                worker.close()

    asyncio.run(scene())


def test_the_event_loop_turns_while_the_worker_thinks(deciders):
    async def scene():
        worker = Worker(deciders.think_long)
        try:
            thinking = asyncio.create_task(worker.decide({}, 10))
            turns = 0
            while not thinking.done():
                await asyncio.sleep(0.01)
                turns += 1
            assert turns > 5
        finally:
            worker.close()

    asyncio.run(scene())
