"""CUDA's driver where there is none; what it does is tested with a stub beside the partitions that use it."""

from __future__ import annotations

import pytest

from ensemble_runtime.devices import cuda
from ensemble_runtime.errors import DeviceUnavailableError


def test_a_machine_without_the_driver_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-that-is-not-there.so.1")
    with pytest.raises(DeviceUnavailableError, match=r"libcuda-that-is-not-there.*install NVIDIA's driver"):
        cuda.Cuda()


def test_a_library_that_is_not_the_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libc.so.6")
    with pytest.raises(DeviceUnavailableError, match=r"CUDA does not start: .*undefined symbol: cuInit"):
        cuda.Cuda()
