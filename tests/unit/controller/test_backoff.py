import math

from hypothesis import given
from hypothesis import strategies as st

from ensemble_operator.controller.backoff import Backoff


def test_pauses_grow_until_something_works():
    backoff = Backoff(first=1, longest=4)
    ends = []
    for _ in range(4):
        backoff.failed("x", "no", 100)
        ends.append(backoff.next_due())
    assert ends == [101, 102, 104, 104]

    backoff.worked("x")
    backoff.failed("x", "no", 200)
    assert backoff.next_due() == 201


def test_a_pause_that_is_over_is_told_once():
    backoff = Backoff(first=1)
    backoff.failed("x", "no", 10)

    assert backoff.waits("x", 10.5) and backoff.resting(10.5) == {"x": "no"}
    backoff.look(11)
    assert not backoff.waits("x", 11) and backoff.next_due() == math.inf


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 100)), min_size=1))
def test_what_fails_waits_for_at_most_the_longest_pause(failures):
    backoff = Backoff(first=1, longest=8)
    for key, moment in sorted(failures, key=lambda f: f[1]):
        backoff.failed(key, "no", moment)
        assert backoff.waits(key, moment + 0.5) and not backoff.waits(key, moment + 8)
