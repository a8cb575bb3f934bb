from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_operator.inventory.device import Device
from ensemble_operator.planner.instance import build
from ensemble_operator.planner.pack import exact_fit, pack, worst_fit
from ensemble_operator.planner.problem import PlanMember, Problem
from ensemble_operator.profiles.profile import Point, Profile
from ensemble_runtime.config import DeviceKind
from ensemble_runtime.errors import ManifestError, OutOfMemoryError

MIB = 2**20


def crowd(device_mib: list[int], member_mib: list[int], kinds: str = "") -> Problem:
    kind = {"c": DeviceKind.CPU, "g": DeviceKind.GPU}
    devices = tuple(
        Device(f"d{i}", "n", kind[(kinds or "g" * len(device_mib))[i]], "t", size * MIB)
        for i, size in enumerate(device_mib)
    )
    members = tuple(
        PlanMember(f"m{i}", {"t": Profile(f"x{i}", "t", "FP32", (Point(8, 0.1, size * MIB),))})
        for i, size in enumerate(member_mib)
    )
    return Problem(devices, members)


def test_the_largest_member_goes_to_the_freest_device() -> None:
    matrix = worst_fit(build(crowd([100, 90], [50, 45, 40])))
    assert matrix is not None
    assert matrix.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_cpus_come_last() -> None:
    matrix = worst_fit(build(crowd([1000, 60], [50, 40], kinds="cg")))
    assert matrix is not None
    gpu, cpu = matrix.tolist()  # the canonical order has GPUs first
    assert (gpu, cpu) == ([1, 0], [0, 1])


def test_packs_exactly_where_worst_fit_fails() -> None:
    # Worst-fit-decreasing ends with {5, 3} and {4, 4}, and a 3 that fits nowhere; {4, 3, 3} and {5, 4, 1} fill both.
    instance = build(crowd([10, 10], [5, 4, 4, 3, 3, 1]))
    assert worst_fit(instance) is None
    assert instance.fits(pack(instance))


@pytest.mark.parametrize(("devices", "members", "short"), [([10], [6, 7], 3), ([10, 10], [7, 7, 7], 4)])
def test_states_the_shortfall(devices: list[int], members: list[int], short: int) -> None:
    with pytest.raises(OutOfMemoryError, match=rf"short of {short} MiB"):
        pack(build(crowd(devices, members)))


def test_names_the_member_that_is_larger_than_any_device() -> None:
    with pytest.raises(OutOfMemoryError, match=re.escape("member 'm1' needs 30 MiB")):
        build(crowd([10, 20], [5, 30]))


def test_names_the_member_without_a_profile() -> None:
    problem = crowd([10], [5])
    with pytest.raises(ManifestError, match="member 'bare': no profile on any of the device types t"):
        build(Problem(problem.devices, (*problem.members, PlanMember("bare", {}))))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(5, 40), min_size=1, max_size=4), st.data())
def test_whatever_was_cut_from_the_devices_fits_back(devices: list[int], data: st.DataObject) -> None:
    members: list[int] = []
    for size in devices:
        cuts = sorted(data.draw(st.sets(st.integers(1, size - 1), max_size=3)))
        members += [b - a for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
    instance = build(crowd(devices, members))
    matrix = pack(instance)
    assert instance.fits(matrix)
    assert (np.count_nonzero(matrix, axis=0) == 1).all()
    assert instance.fits(exact_fit(instance))
