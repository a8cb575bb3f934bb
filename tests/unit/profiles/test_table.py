"""Tables of profiles: what is known, and what is missing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_operator.api.manifest import load_profiles
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_operator.profiles.table import Want, joined, table, written

A, B = "a" * 64, "b" * 64

points = st.builds(
    Point, st.integers(1, 16), st.floats(1e-6, 10, allow_nan=False), st.integers(0, 2**40)
)  # fmt: skip
profiles = st.builds(
    Profile,
    st.sampled_from([A, B]),
    st.sampled_from(["cpu-1", "A100"]),
    st.sampled_from(["FP32", "FP16"]),
    st.lists(points, min_size=1, max_size=4, unique_by=lambda p: p.batch_size).map(lambda p: tuple(sorted(p))),
)
wants = st.builds(
    Want,
    st.sampled_from([A, B]),
    st.sampled_from(["cpu-1", "A100"]),
    st.just("FP32"),
    st.lists(st.integers(1, 16), min_size=1, max_size=4).map(tuple),
)


def test_documents_become_points_in_bytes() -> None:
    text = f"""
apiVersion: ensembles.dev/v1alpha1
kind: ModelProfile
metadata: {{name: p}}
spec:
  model: {{sha256: {A}}}
  deviceType: A100
  points:
  - {{batchSize: 8, seconds: 0.004, memoryMib: 1.5}}
  - {{batchSize: 1, seconds: 0.002, memoryMib: 1}}
  interference: [{{sha256: {B}, factor: 0.9}}]
"""
    known = written(load_profiles(text))
    profile = known.get(A, "A100", "FP32")
    assert profile is not None
    assert profile.points == (Point(1, 0.002, 2**20), Point(8, 0.004, 3 * 2**19))
    assert known.get(A, "A100", "FP16") is None
    assert known.interference == {("A100", A, B): 0.9}


def test_the_other_table_counts_where_both_have_a_point() -> None:
    old = Profile(A, "cpu-1", "FP32", (Point(1, 1.0, 10), Point(2, 2.0, 20)))
    new = Profile(A, "cpu-1", "FP32", (Point(2, 5.0, 50),))
    assert table([old]).merge(table([new])).get(A, "cpu-1", "FP32") == joined(old, new)
    assert joined(old, new).points == (Point(1, 1.0, 10), Point(2, 5.0, 50))


def test_a_want_in_part_there_lacks_only_the_rest() -> None:
    known = table([Profile(A, "cpu-1", "FP32", (Point(1, 1.0, 10), Point(4, 2.0, 20)))])
    asked = [Want(A, "cpu-1", "FP32", (1, 2, 4, 8)), Want(B, "cpu-1", "FP32", (1,)), Want(A, "cpu-1", "FP32", (16,))]
    assert known.missing(asked) == (Want(A, "cpu-1", "FP32", (2, 8, 16)), Want(B, "cpu-1", "FP32", (1,)))


@settings(deadline=None)
@given(st.lists(profiles, max_size=6), st.lists(wants, max_size=4))
def test_what_is_missing_is_what_is_wanted_and_not_there(known: list[Profile], asked: list[Want]) -> None:
    all_known = table(known)
    missing = {(w.digest, w.device_type, w.precision, size) for w in all_known.missing(asked) for size in w.batch_sizes}
    wanted = {(w.digest, w.device_type, w.precision, size) for w in asked for size in w.batch_sizes}
    there = {(p.digest, p.device_type, p.precision, point.batch_size) for p in known for point in p.points}
    assert missing == wanted - there


@settings(deadline=None)
@given(profiles, profiles)
def test_joining_keeps_every_batch_size_once_and_in_order(one: Profile, other: Profile) -> None:
    sizes = [point.batch_size for point in joined(one, other).points]
    assert sizes == sorted({point.batch_size for point in (*one.points, *other.points)})
