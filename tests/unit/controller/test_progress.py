from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from ensemble_operator.controller.progress import progress
from ensemble_operator.controller.records import OwnPod
from ensemble_operator.controller.rollout import WantedSet

START = datetime.fromisoformat("2026-01-01T00:00:00Z")
TIMEOUT = 60.0


def stamp(seconds):
    return (START + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def wanted(*names):
    return [WantedSet(i, "r", "p", (name,), frozenset()) for i, name in enumerate(names)]


def pod(created=0, ready_since=None, phase="Running", trouble=None, **rest):
    ready = ready_since is not None
    since = stamp(ready_since) if ready else stamp(created)
    return OwnPod("u", stamp(created), "e", {}, {}, "n", "", phase, ready, False, trouble, None, since, **rest)


def after(seconds, pods, *names, began=0):
    names = names or tuple(pods)
    return progress(
        wanted(*names), pods, stamp(began) if began is not None else None, TIMEOUT, START + timedelta(seconds=seconds)
    )


def test_what_is_ready_is_complete_and_waits_for_nothing():
    found = after(5, {"a": pod(ready_since=3), "b": pod(ready_since=4)})

    assert (found.complete, found.late, found.due) == (True, None, None)


def test_nothing_wanted_is_not_complete():
    assert not progress([], {}, stamp(0), TIMEOUT, START).complete


def test_what_is_not_ready_in_time_is_late_and_says_why():
    pods = {"a": pod(trouble="CrashLoopBackOff: container fetch-0 ended with 66: no such file")}

    assert after(59, pods).due == pytest.approx(1.0) and after(59, pods).late is None
    assert after(60, pods).late == f"pod a was not ready within 60 s: {pods['a'].trouble}"


def test_time_runs_anew_when_another_becomes_ready():
    pods = {"a": pod(ready_since=50), "b": pod()}

    assert after(100, pods).late is None and after(110, pods).late is not None


def test_copies_that_are_made_later_have_their_time():
    pods = {"a": pod(ready_since=10), "b": pod(created=500)}

    assert after(550, pods).late is None and after(560, pods).late is not None


def test_what_is_not_made_yet_is_not_late():
    found = after(1000, {"a": pod(ready_since=10)}, "a", "b")

    assert (found.complete, found.late, found.due) == (False, None, None)


def test_who_ceased_to_be_ready_has_time_from_then_on():
    pods = {"a": replace(pod(), ready_since=stamp(1000))}

    assert after(1059, pods).late is None and after(1060, pods).late is not None


def test_who_ends_and_is_made_anew_gains_no_time():
    assert after(61, {"a": pod(created=55, phase="Failed", trouble="Evicted")}).late is not None
    assert after(61, {"a": pod(created=55, bereft=True)}).late is not None
    assert after(61, {"a": pod(created=55)}).late is None


def test_pods_that_were_there_before_the_edition_have_its_time():
    pods = {"a": pod()}

    assert after(1000, pods, began=990).late is None
    assert after(1000, pods, began=None).late is None, "it is not written down yet"
