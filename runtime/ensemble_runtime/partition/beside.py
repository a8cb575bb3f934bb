"""The process of a partition's second device: opens its sessions, and computes its runs when the first one begins.

It ends when the process that started it does, however that ends.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, NamedTuple

import numpy as np

from ensemble_runtime.config import Device, DeviceKind
from ensemble_runtime.devices.working_memory import give_memory_back, keep_memory
from ensemble_runtime.errors import DeviceUnavailableError, EnsembleError
from ensemble_runtime.partition.gates import LINE, Bells, following, lines
from ensemble_runtime.partition.sessions import call, open_session, path_of

BEGUN, PLAN, DONE, FAILED, *ASLEEP = range(6)
"""Lines of the memory that both processes always share: the turn that the first one has begun, the number of the plan
that it goes by, the turn that the second one is through, the turn in which something failed, and who sleeps."""
CONTROL_BYTES = 6 * LINE


@dataclass(frozen=True)
class At:
    """Where in shared memory a tensor is, and what a session calls it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Part:
    """A run of the second device."""

    wait: int | None
    """The gate to wait for."""
    session: int | None
    """None: nothing to compute."""
    inputs: tuple[At, ...]
    outputs: tuple[At, ...]
    tell: int | None
    """The gate to open."""


class Step(NamedTuple):
    """A run at work; unpacked between any two of them."""

    wait: int | None
    compute: Callable[[], None] | None
    tell: int | None


def walk(steps: Sequence[Step], bells: Bells, gates: memoryview, turn: int) -> BaseException | None:
    """Compute one device's runs in order; after a failure only wait and tell, so that the other device gets through."""
    failure: BaseException | None = None
    for wait, compute, tell in steps:
        if wait is not None:
            bells.wait(gates, wait, turn)
        if failure is None and compute is not None:
            try:
                compute()
            except Exception as error:
                failure = error
        if tell is not None:
            bells.open(gates, tell, turn)
    return failure


def asleep(control: memoryview, device: int) -> tuple[memoryview, memoryview]:
    """Where the process of a device says that it sleeps, and where the other one does."""
    here, there = (control[line:] for line in (ASLEEP[device], ASLEEP[1 - device]))
    return here, there


class _Second:
    """What the process holds."""

    def __init__(self, peer: Connection, bells: Bells, control: memoryview) -> None:
        self._peer = peer
        self._bells = bells
        self._control = control
        self._sessions: dict[int, Any] = {}
        self._plans: dict[int, tuple[list[Step], memoryview]] = {}
        self._device: Device | None = None
        self._failure: Exception | None = None

    def live(self) -> None:
        """Do what is asked for, until nobody can ask any more."""
        turn = 1
        while True:
            if self._bells.passed(self._control, BEGUN, turn):
                steps, gates = self._plans[self._control[PLAN]]
                failure = walk(steps, self._bells, gates, turn)
                if failure is not None:
                    self._failure = failure if isinstance(failure, Exception) else None
                    self._control[FAILED] = turn
                self._bells.open(self._control, DONE, turn)
                turn = following(turn)
            elif self._bells.sleep(self._control, BEGUN, turn):
                try:
                    order, *arguments = self._peer.recv()
                except (EOFError, ConnectionError):
                    return
                self._peer.send(self._answered(order, arguments))

    def _answered(self, order: str, arguments: list[Any]) -> Exception | None:
        try:
            getattr(self, order)(*arguments)
        except EnsembleError as error:
            return error
        except Exception as error:  # whatever it is, the first process has to hear of it, and may not know its class
            return RuntimeError(str(error))
        return None

    def begin(self, device: Device) -> None:
        """Stand on a device."""
        self._device = device
        if device.kind is DeviceKind.CPU and device.cores:  # under a quota it has none of its own
            try:
                os.sched_setaffinity(0, device.cores)
            except OSError as error:
                raise DeviceUnavailableError(f"{device.name}: cannot pin to its cores: {error.strerror}") from error

    def open(self, number: int) -> None:
        """Open a session."""
        assert self._device is not None, "begun"
        descriptor = recv_handle(self._peer)
        try:
            self._sessions[number] = open_session(path_of(descriptor), self._device)
        finally:
            os.close(descriptor)

    def bind(self, number: int, size: int, gates: int, parts: tuple[Part, ...]) -> None:
        """Bind runs to memory that is shared; by now all sessions are open."""
        keep_memory()
        descriptor = recv_handle(self._peer)
        shared = mmap.mmap(descriptor, size)
        os.close(descriptor)
        base = np.frombuffer(shared, np.uint8).ctypes.data
        steps = []
        for part in parts:
            compute = None
            if part.session is not None:
                session = self._sessions[part.session]
                binding = session.io_binding()
                for at in part.inputs:
                    binding.bind_input(at.name, "cpu", 0, np.dtype(at.datatype), at.shape, base + at.offset)
                for at in part.outputs:
                    binding.bind_output(at.name, "cpu", 0, np.dtype(at.datatype), at.shape, base + at.offset)
                compute = call(session, binding)
            steps.append(Step(part.wait, compute, part.tell))
        self._plans[number] = (steps, lines(shared, gates))

    def drop(self, number: int) -> None:
        """Forget a plan."""
        del self._plans[number]

    def why(self) -> None:
        """Raise what failed in the last turn."""
        assert self._failure is not None, "asked only after a failure"
        raise self._failure


def _end_with(life: int) -> None:
    """Be killed by the kernel when the other end of a pipe closes, even while stopped, or within a call that hangs.

    A parent-death signal would come when the thread that started this process ends, which may be one of a pool.
    """
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)


def main(peer: int, own: int, other: int, shared: int, life: int) -> None:
    """Be the second device, over these descriptors."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the first process decides when to end
        signal.signal(number, signal.SIG_IGN)
    _end_with(life)
    give_memory_back()
    control = lines(mmap.mmap(shared, CONTROL_BYTES), CONTROL_BYTES)
    _Second(Connection(peer), Bells(own, other, peer, asleep(control, 1)), control).live()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
