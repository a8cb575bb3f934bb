"""How a profile settles what it has seen; the measuring itself is tested with real processes, in tests/runtime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ensemble_runtime.config import Device, DeviceKind
from ensemble_runtime.errors import OutOfMemoryError
from ensemble_runtime.measuring import Measured, Peers
from ensemble_runtime.profiler import LOOKS, MORE_LOOKS, _beside, _settled


class Seen(Measured):
    """Sees what it is told to, look by look, whatever the size; then its memory runs out."""

    def __init__(self, *looks: float) -> None:
        self._looks: Iterator[float] = iter(looks)

    def look(self, size: int) -> dict[str, Any]:
        found = next(self._looks, None)
        if found is None:
            raise OutOfMemoryError("no more")
        return {"seconds": found, "memoryBytes": 1, "baselineBytes": 0}


def settled(first: float, *looks: float) -> list[float]:
    nobody = Peers(None, ())  # type: ignore[arg-type]  # without devices it starts nothing
    found = [{"batchSize": 4, "seconds": first, "memoryBytes": 1}]
    return [record["seconds"] for record in _settled(Seen(*looks), nobody, found)]


def test_one_look_that_was_spoiled_does_not_count() -> None:
    assert settled(2.4, 1.0, 1.01, 1.0, 1.02) == [1.01]


def test_where_looks_differ_there_are_more() -> None:
    spoiled = [2.0, 2.1]
    calm = [1.0, 1.01, 1.02]
    assert len(spoiled) < LOOKS and len(spoiled + calm) == LOOKS + MORE_LOOKS
    assert settled(*spoiled, *calm) == [1.02]


def test_where_they_agree_there_are_no_more() -> None:
    assert settled(1.0, 1.04, 1.02) == [1.02]


def test_where_memory_runs_out_the_first_look_has_to_do() -> None:
    assert settled(1.0, 1.0) == []


def cores(*numbers: int, kind: DeviceKind = DeviceKind.CPU) -> Device:
    uuid = "GPU-1" if kind is DeviceKind.GPU else None
    return Device(
        name=f"d{len(numbers)}-{sum(numbers)}", kind=kind, type="cpu-2", memory_bytes=1, cores=numbers, uuid=uuid
    )


@pytest.mark.parametrize(
    ("device", "beside"),
    [
        (cores(0, 1), [cores(2, 3), cores(4, 5)]),
        (cores(2, 3), [cores(0, 1), cores(4, 5)]),
        (cores(1, 2), [cores(4, 5)]),
        (cores(), []),
        (cores(kind=DeviceKind.GPU), []),
    ],
)
def test_beside_a_core_set_are_those_that_share_no_core_with_it(device: Device, beside: list[Device]) -> None:
    peers = (cores(0, 1), cores(2, 3), cores(4, 5), cores(), cores(kind=DeviceKind.GPU))
    assert list(_beside(device, peers)) == beside


def test_a_subject_that_is_too_large_for_all_has_no_peers() -> None:
    peers = Peers(None, [cores(0)])  # type: ignore[arg-type]  # nothing is started
    peers.busy(1, 2**60)
    assert not peers._running
