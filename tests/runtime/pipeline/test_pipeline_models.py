"""Real models in real processes that do what no model should, for the requests that ask for it and no others."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble_runtime.pipeline.disagreement import disagreement
from ensemble_runtime.pipeline.port import Verdict

RAISES, NAN, MISSHAPEN, HANGS = -1.0, -2.0, -3.0, -4.0
STACK_RAISES, STACK_NAN, STACK_HANGS = -5.0, -6.0, -7.0
DIED = "died or hung on this request"


def rows_in_mood(client: Any, mood: float | None, rows: int = 2) -> np.ndarray:
    values: np.ndarray = client.rows(rows) + np.arange(4, dtype="f4")
    if mood is not None:
        values[-1, 0] = mood
    return values


async def ask_in_moods(client: Any, moods: list[float | None], expected: Callable[..., np.ndarray]) -> list[Any]:
    """Requests in all of these moods at once, so that they share batches; those without a mood must be right."""
    requests = [rows_in_mood(client, mood, rows=1 + i % 3) for i, mood in enumerate(moods)]
    answers = await asyncio.gather(*(client.ask(values) for values in requests))
    for mood, values, answer in zip(moods, requests, answers, strict=True):
        if mood is None:
            assert answer.outcome.verdict is Verdict.COMPLETE, answer.outcome
            np.testing.assert_allclose(answer.output, expected(values), rtol=1e-6)
    return [answer.outcome for mood, answer in zip(moods, answers, strict=True) if mood is not None]


def plain_mean(values: np.ndarray) -> np.ndarray:
    return values[:, :3] + 1.0  # of +0, +3 and +0


async def moody_members(client: Any) -> None:
    none, started = None, client.batcher._arena.batch_started
    for _ in range(3):
        outcomes = await ask_in_moods(client, [none, RAISES, none, NAN, none, MISSHAPEN, none, none], plain_mean)
        assert [outcome.verdict for outcome in outcomes] == [Verdict.MEMBER_FAILED] * 3
        assert [list(outcome.missing) for outcome in outcomes] == [["moody"]] * 3
        raised, nan, misshapen = (outcome.missing["moody"] for outcome in outcomes)
        assert raised.startswith("raised an error (")
        assert nan == "returned NaN or infinity"
        assert misshapen.startswith("returned a wrong shape (")
    partial = await client.ask(rows_in_mood(client, RAISES), min_members=2)
    assert partial.outcome.verdict is Verdict.PARTIAL
    assert set(partial.members) == {"spoiler", "steady"}
    np.testing.assert_allclose(partial.output, np.mean(list(partial.members.values()), axis=0), rtol=1e-6)

    # A member that does not return is killed, and what was in the same batch runs again without it.
    (hung,) = await ask_in_moods(client, [none, none, HANGS, none, none], plain_mean)
    assert hung.missing == {"moody": DIED}
    assert client.cells("moody")[0].restarts == 2

    # Killed while it computes, together with the forge that is to make the next one.
    poor = asyncio.create_task(client.ask(rows_in_mood(client, HANGS)))
    await client.until(lambda: started[0])
    pid, forge = client.kill("moody"), client.kill("forge")
    await client.back("moody", pid)
    await client.until(lambda: client.pid("forge") not in (0, forge) and started[0])
    os.kill(client.pid("moody"), signal.SIGKILL)
    assert (await poor).outcome.missing == {"moody": DIED}
    assert not await ask_in_moods(client, [none] * 8, plain_mean)
    await client.settled()


def test_a_moody_member_fails_only_the_requests_it_must(run: Callable[..., Any], on_cores: Callable[..., Any]) -> None:
    members = {"moody": {"file": "moody"}, "spoiler": {"file": "spoiler"}, "steady": {"file": "steady"}}
    run(on_cores(members, serving={"memberTimeoutMs": 1500}), "moody_members")


async def moody_stack(client: Any) -> None:
    def stacked(values: np.ndarray) -> np.ndarray:
        return values[:, :3] - 3.0  # 2 * (x + 0) - (x + 3)

    none = None
    outcomes = await ask_in_moods(client, [none, STACK_RAISES, none, STACK_NAN, none], stacked)
    assert all(outcome.missing["combination"].startswith("raised an error (") for outcome in outcomes)
    assert [outcome.verdict for outcome in outcomes] == [Verdict.MEMBER_FAILED] * 2

    # The stack needs all members: without one there is no answer, quorum or not.
    failed = await client.ask(rows_in_mood(client, RAISES), min_members=1)
    assert failed.outcome.verdict is Verdict.MEMBER_FAILED

    combiner = client.pid("combiner")
    (hung,) = await asyncio.gather(client.ask(rows_in_mood(client, STACK_HANGS), timeout=1.0))
    assert hung.outcome.verdict is Verdict.TIMED_OUT
    await client.back("combiner", combiner)
    assert not await ask_in_moods(client, [none] * 6, stacked)


def test_a_moody_stacking_model_fails_only_the_requests_it_must(
    run: Callable[..., Any], on_cores: Callable[..., Any]
) -> None:
    members = {"moody": {"file": "moody"}, "spoiler": {"file": "spoiler"}}
    run(on_cores(members, stacking="stacked", serving={"memberTimeoutMs": 2000}), "moody_stack")


def overwrite(file: Path, content: bytes) -> None:
    file.write_bytes(content)


async def overwritten(client: Any, role: str, file: Path, right: bytes, other: bytes) -> None:
    values = rows_in_mood(client, None)
    before = await client.ask(values)
    overwrite(file, other)
    pid = client.kill(role)
    await client.until(lambda: "was overwritten" in client.batcher.health().reason)
    health = client.batcher.health()
    assert not health.ready
    assert all(hashlib.sha256(content).hexdigest() in health.reason for content in (right, other))
    if role != "combiner":
        assert health.reason.startswith(f"no worker is ready for {role} (model {file}: ")
        assert list((await client.ask(values, timeout=0.2)).outcome.missing) == [role]
    overwrite(file, right)
    await client.back(role, pid)
    np.testing.assert_array_equal((await client.ask(values)).output, before.output)


@pytest.mark.parametrize(
    ("role", "name", "other"), [("steady", "steady", "spoiler"), ("combiner", "stacked", "steady")], ids=str
)
def test_a_model_that_is_overwritten_while_it_serves_is_not_loaded(
    run: Callable[..., Any],
    on_cores: Callable[..., Any],
    model_files: Path,
    tmp_path: Path,
    role: str,
    name: str,
    other: str,
) -> None:
    theirs, own = model_files / f"{name}.pt", tmp_path / "model.pt"
    own.write_bytes(theirs.read_bytes())
    stacking = "stacked" if role == "combiner" else None
    config = on_cores({"steady": {"file": "steady"}, "spoiler": {"file": "spoiler"}}, stacking)
    config = config.model_validate_json(config.model_dump_json(by_alias=True).replace(theirs.as_uri(), own.as_uri()))
    run(config, "overwritten", role, own, own.read_bytes(), (model_files / f"{other}.pt").read_bytes())


async def any_length(client: Any) -> None:
    async def ask(length: int, rows: int, negative: bool = False) -> tuple[np.ndarray, Any]:
        values = np.random.default_rng(length * 100 + rows).random((rows, length), dtype="f4") + 1.0
        values[0, 0] *= -1.0 if negative else 1.0
        return values, await client.ask(values)

    answers = await asyncio.gather(*(ask(length, rows) for length in range(1, 9) for rows in (1, 3, 11)))
    for values, answer in answers:
        assert answer.outcome.verdict is Verdict.COMPLETE, answer.outcome
        assert answer.output.shape == values.shape
        np.testing.assert_allclose(answer.output, values * 2.0, rtol=1e-6)  # of 1, 2 and 3
        np.testing.assert_allclose(answer.members["triple"], values * 3.0, rtol=1e-6)

    values, answer = await ask(5, 2, negative=True)
    assert answer.outcome.verdict is Verdict.MEMBER_FAILED
    assert list(answer.outcome.missing) == ["shortened"], "it differs from the other two"
    values = np.random.default_rng(0).random((2, 4), dtype="f4") - 2.0
    partial = await client.ask(values, min_members=2)
    assert partial.outcome.verdict is Verdict.PARTIAL
    np.testing.assert_allclose(partial.output, values * 2.5, rtol=1e-6)
    await client.settled()
    assert client.cells("shadow")[0].rows == client.cells("triple")[0].rows


async def beside_a_shadow(client: Any) -> None:
    for rows in (1, 3, 8):
        await client.ask(rows_in_mood(client, None, rows))
    failed = await client.ask(rows_in_mood(client, RAISES, 2))
    assert failed.outcome.verdict is Verdict.MEMBER_FAILED
    await client.settled()
    (shadow,) = client.batcher.health().shadows
    assert (shadow.name, shadow.rows, shadow.agreeing) == ("shadow", 12, None)
    assert shadow.apart == pytest.approx(12 * 3.0, rel=1e-5)


def test_a_shadow_is_compared_with_what_was_answered(run: Callable[..., Any], on_cores: Callable[..., Any]) -> None:
    members = {"moody": {"file": "moody"}, "shadow": {"file": "spoiler", "shadow": True}}
    run(on_cores(members), "beside_a_shadow")


async def segments_that_differ(client: Any) -> None:
    values = np.full((11, 4), 5.0, dtype="f4")
    values[:, 0] = np.arange(11) + 10
    alike = await client.ask(values)
    np.testing.assert_array_equal(alike.output, values)
    values[8, 0] = 2.0  # the second segment begins with it
    differing = await client.ask(values)
    assert differing.outcome.verdict is Verdict.MEMBER_FAILED
    reason = "returned a wrong shape (member 'whimsical': rows of one request differ in shape)"
    assert differing.outcome.missing == {"whimsical": reason}


def test_rows_of_one_request_have_one_shape(run: Callable[..., Any], on_cores: Callable[..., Any]) -> None:
    tensor = {"datatype": "FP32", "shape": [-1], "maxLength": 8}
    config = on_cores(
        {"whimsical": {"file": "whimsical"}}, inputs=[{"name": "x", **tensor}], outputs=[{"name": "y", **tensor}]
    )
    run(config, "segments_that_differ")


def test_rows_of_any_length(run: Callable[..., Any], on_cores: Callable[..., Any]) -> None:
    tensor = {"datatype": "FP32", "shape": [-1], "maxLength": 8}
    members = {
        "shortened": {"file": "shortened"},
        "double": {"file": "double"},
        "triple": {"file": "triple"},
        "shadow": {"file": "triple", "shadow": True},
    }
    config = on_cores(members, inputs=[{"name": "x", **tensor}], outputs=[{"name": "y", **tensor}])
    run(config, "any_length")


async def logits_and_disagreement(client: Any) -> None:
    values = np.random.default_rng(5).normal(size=(6, 3)).astype("f4")
    answer = await client.ask(values, disagreement=True)
    logits = np.stack([values * 2.0, values * 3.0])
    exponentials = np.exp(logits)
    probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(answer.output, probabilities.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(answer.members["triple"], logits[1], rtol=1e-6)  # as the member gave it
    signals = np.stack(list(answer.disagreement.values()), axis=1)
    expected = disagreement(logits, [1.0, 1.0], client.config.combination.predictions)
    np.testing.assert_allclose(signals, expected, rtol=1e-4)
    assert len(np.unique(signals)) > 6


def test_logits_and_disagreement(run: Callable[..., Any], on_cores: Callable[..., Any]) -> None:
    config = on_cores(
        {"double": {"file": "double"}, "triple": {"file": "triple"}},
        inputs=[{"name": "x", "datatype": "FP32", "shape": [3]}],
        combination={"rule": "Mean", "predictions": "Logits"},
    )
    run(config, "logits_and_disagreement")
