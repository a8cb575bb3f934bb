"""The stated costs of simulated devices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_runtime.config import Device, DeviceKind
from ensemble_runtime.devices.simulated import SimulatedClock
from ensemble_runtime.errors import ManifestError

seconds = st.floats(0, 100, allow_nan=False)
points = st.dictionaries(st.integers(1, 1024), seconds, min_size=1, max_size=8)
rising = points.map(lambda stated: dict(zip(sorted(stated), sorted(stated.values()), strict=True)))


def clock(stated):
    device = Device(name="s", kind=DeviceKind.SIMULATED, type="sim", memory_bytes=1, seconds={"m": stated})
    return SimulatedClock(device, "m")


@given(points)
def test_stated_points_are_kept(stated):
    timed = clock(stated)
    assert all(timed.seconds(size) == pytest.approx(value, abs=1e-12) for size, value in stated.items())


@given(rising, st.integers(1, 4096), st.integers(1, 4096))
def test_larger_batches_never_take_less_where_the_points_do_not_fall(stated, one, other):
    timed = clock(stated)
    small, large = sorted((one, other))
    assert timed.seconds(small) <= timed.seconds(large) * (1 + 1e-12) + 1e-12


@given(points, st.integers(1, 1024))
def test_between_points_the_time_is_between_theirs(stated, size):
    lower = max((s for s in stated if s <= size), default=None)
    upper = min((s for s in stated if s >= size), default=None)
    if lower is not None and upper is not None:
        low, high = sorted((stated[lower], stated[upper]))
        assert low - 1e-9 <= clock(stated).seconds(size) <= high + 1e-9


@given(points, st.integers(1, 100_000))
def test_time_is_never_negative(stated, size):
    assert clock(stated).seconds(size) >= 0


def test_linear_between_and_beyond_the_points_and_flat_below():
    timed = clock({4: 1.0, 8: 2.0})
    assert [timed.seconds(size) for size in (1, 4, 6, 8, 12)] == [1.0, 1.0, 1.5, 2.0, 3.0]


def test_a_single_point_grows_in_proportion():
    assert clock({4: 1.0}).seconds(8) == 2.0


@pytest.mark.parametrize("stated", [{}, {0: 1.0}, {1: -1.0}, {1: float("nan")}])
def test_costs_that_mean_nothing_are_refused(stated):
    with pytest.raises(ManifestError, match=r"devices\[s\]\.seconds"):
        clock(stated)
