"""The little of CUDA that a partition needs beside ONNX Runtime: streams, events, copies, and memory that is pinned.

It is the driver's, which every machine with a GPU has, whichever CUDA ONNX Runtime was built for; both work in the
device's primary context, and ONNX Runtime computes on a stream that is made here. What is called here is described in
https://docs.nvidia.com/cuda/cuda-driver-api.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from contextlib import suppress
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any, cast

from ensemble_runtime.errors import DeviceUnavailableError, OutOfMemoryError

LIBRARY = "libcuda.so.1"

_OUT_OF_MEMORY, _NOT_READY = 2, 600
_NON_BLOCKING, _NO_TIMES, _PORTABLE = 1, 2, 1


_HANDLE, _ADDRESS, _SIZE, _FLAGS = c_void_p, c_uint64, c_size_t, c_uint
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (_FLAGS,),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(_HANDLE), c_int),
    "cuCtxSetCurrent": (_HANDLE,),
    "cuStreamCreate": (POINTER(_HANDLE), _FLAGS),
    "cuStreamWaitEvent": (_HANDLE, _HANDLE, _FLAGS),
    "cuStreamSynchronize": (_HANDLE,),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, c_void_p, _SIZE, _HANDLE),
    "cuMemcpyDtoHAsync_v2": (c_void_p, _ADDRESS, _SIZE, _HANDLE),
    "cuEventCreate": (POINTER(_HANDLE), _FLAGS),
    "cuEventDestroy_v2": (_HANDLE,),
    "cuEventRecord": (_HANDLE, _HANDLE),
    "cuEventQuery": (_HANDLE,),
    "cuEventSynchronize": (_HANDLE,),
    "cuEventElapsedTime": (POINTER(c_float), _HANDLE, _HANDLE),
    "cuMemAlloc_v2": (POINTER(_ADDRESS), _SIZE),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemHostRegister_v2": (c_void_p, _SIZE, _FLAGS),
    "cuMemHostUnregister": (c_void_p,),
}


class CudaError(DeviceUnavailableError):
    """CUDA refuses or fails."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Some bytes that cross between the device's memory and the host's."""

    there: int
    """Address on the device."""
    here: int
    """Address on the host."""
    size: int


class Cuda:
    """The first visible GPU, by the calls that are needed of it; a thread has to `enter` before it uses anything."""

    def __init__(self) -> None:
        """Take hold of the device's primary context, which lives as long as the process.

        Raises:
            DeviceUnavailableError: there is no driver, or no GPU.
            OutOfMemoryError: there is no room for a context.
        """
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise DeviceUnavailableError(f"{LIBRARY} is not there: {error}; install NVIDIA's driver") from error
        device, context = c_int(), c_void_p()
        try:
            self.calls = {name: self._function(name, types) for name, types in _FUNCTIONS.items()}
            self.calls["cuInit"](0)
            self.calls["cuDeviceGet"](byref(device), 0)
            self.calls["cuDevicePrimaryCtxRetain"](byref(context), device)
            self._context = context
            self.enter()
        except (CudaError, AttributeError) as error:
            raise DeviceUnavailableError(f"CUDA does not start: {error}; check the driver with nvidia-smi") from error

    def enter(self) -> None:
        """Have this thread use the device."""
        self.calls["cuCtxSetCurrent"](self._context)

    def _function(self, name: str, types: tuple[Any, ...]) -> Callable[..., int]:
        """A function of the driver, which raises `CudaError` or `OutOfMemoryError` unless it succeeds."""
        permitted = {0, _NOT_READY} if name == "cuEventQuery" else {0}

        def checked(result: int, *_: object) -> int:
            if result == _OUT_OF_MEMORY:
                raise OutOfMemoryError(f"the GPU is out of memory ({name})")
            if result not in permitted:
                raise CudaError(f"{name}: {self._name(result)}")
            return result

        found = getattr(self._library, name)
        found.argtypes, found.restype, found.errcheck = types, c_int, checked
        return cast(Callable[..., int], found)

    def _name(self, result: int) -> str:
        name = c_char_p()
        self._library.cuGetErrorName(c_int(result), byref(name))
        return name.value.decode() if name.value else f"error {result}"


class Stream:
    """Work of the device that is done in the order in which it was given.

    It lives as long as the process: nobody tells when the last session of ONNX Runtime that computes on it is gone.
    """

    def __init__(self, cuda: Cuda) -> None:
        """Make one that does not wait for the default stream, nor that for it."""
        handle = c_void_p()
        cuda.calls["cuStreamCreate"](byref(handle), _NON_BLOCKING)
        assert handle.value is not None, "made"
        self.handle = handle.value
        self._after = cuda.calls["cuStreamWaitEvent"]
        self._up = cuda.calls["cuMemcpyHtoDAsync_v2"]
        self._down = cuda.calls["cuMemcpyDtoHAsync_v2"]
        self._finish = cuda.calls["cuStreamSynchronize"]

    def after(self, event: Event) -> None:
        """Go on only once an event has passed that was recorded before."""
        self._after(self.handle, event.handle, 0)

    def up(self, copy: Copy) -> None:
        """Copy from the host."""
        self._up(copy.there, copy.here, copy.size, self.handle)

    def down(self, copy: Copy) -> None:
        """Copy to the host."""
        self._down(copy.here, copy.there, copy.size, self.handle)

    def finish(self) -> None:
        """Wait until all is done that was given."""
        self._finish(self.handle)


class Event:
    """A place in a stream, anew each time that it is recorded."""

    def __init__(self, cuda: Cuda, *, timed: bool = False) -> None:
        """Make one."""
        handle = c_void_p()
        cuda.calls["cuEventCreate"](byref(handle), 0 if timed else _NO_TIMES)
        assert handle.value is not None, "made"
        self.handle = handle.value
        self._record = cuda.calls["cuEventRecord"]
        self._query = cuda.calls["cuEventQuery"]
        self._wait = cuda.calls["cuEventSynchronize"]
        self._since = cuda.calls["cuEventElapsedTime"]
        _when_gone(self, cuda, "cuEventDestroy_v2", self.handle)

    def record(self, stream: Stream) -> None:
        """Be the place behind all that the stream was given so far."""
        self._record(self.handle, stream.handle)

    def passed(self) -> bool:
        """Whether the stream has come here."""
        return self._query(self.handle) == 0

    def wait(self) -> None:
        """Wait until it has."""
        self._wait(self.handle)

    def since(self, other: Event) -> float:
        """Seconds from another event to this one; both are timed and have passed."""
        milliseconds = c_float()
        self._since(byref(milliseconds), other.handle, self.handle)
        return milliseconds.value / 1000


class Block:
    """Some of the device's memory, undefined, until the object is gone."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        """Allocate.

        Raises:
            OutOfMemoryError: there is no room.
        """
        address = c_uint64()
        cuda.calls["cuMemAlloc_v2"](byref(address), max(1, size))
        self.address = address.value
        self.size = size
        _when_gone(self, cuda, "cuMemFree_v2", self.address)


class Pinned:
    """Some of the host's memory that the device reads and writes by itself, until the object is gone.

    What is not pinned crosses all the same, but by way of a buffer of the driver's, and whoever asks for it waits.
    """

    def __init__(self, cuda: Cuda, address: int, size: int) -> None:
        """Pin whole pages, which must stay where they are.

        Raises:
            CudaError, OutOfMemoryError: the driver refuses.
        """
        cuda.calls["cuMemHostRegister_v2"](address, size, _PORTABLE)
        _when_gone(self, cuda, "cuMemHostUnregister", address)


def _when_gone(owner: object, cuda: Cuda, give_back: str, what: int) -> None:
    def given_back() -> None:
        with suppress(CudaError, OutOfMemoryError):  # a device that has failed gives everything back with the process
            cuda.enter()  # whichever thread it is
            cuda.calls[give_back](what)

    weakref.finalize(owner, given_back).atexit = False
