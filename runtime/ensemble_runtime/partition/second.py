"""The first device's hold on the process of the second one (`beside`)."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
from io import FileIO
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle

from ensemble_runtime.config import Device
from ensemble_runtime.partition.beside import BEGUN, CONTROL_BYTES, DONE, FAILED, PLAN, Part, asleep
from ensemble_runtime.partition.gates import LINE, Bells, following, lines

PROCESS_BYTES = 48 * 2**20
"""Of anonymous memory that the process takes before it has opened a session; 37 MiB as measured."""
_PATIENCE = 5.0
"""Seconds that the process has to end by itself."""


class SharedMemory:
    """Memory that another process can be given."""

    def __init__(self, size: int, before: SharedMemory | None = None) -> None:
        """Zeros; or another piece of memory, with zeros behind it."""
        self.size = max(size, LINE)
        # Closed with the last object that has it.
        self._file: FileIO = before._file if before else os.fdopen(os.memfd_create("partition"), "r+b", buffering=0)
        self._file.truncate(self.size)
        self.map = mmap.mmap(self.descriptor, self.size)

    @property
    def descriptor(self) -> int:
        """What the other process maps."""
        return self._file.fileno()


class SecondDevice:
    """A process that stands on a device and computes what it is told to. For one thread at a time."""

    def __init__(self, device: Device) -> None:
        """Start it.

        Raises:
            DeviceUnavailableError: The device cannot be had.
        """
        ours, theirs = socket.socketpair()
        own, other = os.eventfd(0), os.eventfd(0)
        self._memory = SharedMemory(CONTROL_BYTES)
        # Its end of this pipe hangs up when this process is gone: it is told by the kernel, whatever it does then.
        theirs_of_life, self._life = os.pipe()
        # What rings here is rung there.
        descriptors = (theirs.fileno(), other, own, self._memory.descriptor, theirs_of_life)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ensemble_runtime.partition.beside", *map(str, descriptors)],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        os.close(theirs_of_life)
        self._peer = Connection(ours.detach())
        self._descriptors = [own, other]
        self._control = lines(self._memory.map, CONTROL_BYTES)
        self.bells = Bells(own, other, self._peer.fileno(), asleep(self._control, 0))
        self._turn = 0
        self._sessions = self._plans = 0
        try:
            self._ask("begin", device)
        except BaseException:
            self.close()
            raise

    def open(self, model: int) -> int:
        """Open a session there, of what a descriptor leads to; returns its number.

        Raises:
            ModelInvalidError: ONNX Runtime refuses the model.
        """
        self._sessions += 1
        self._ask("open", self._sessions, sends=model)
        return self._sessions

    def bind(self, memory: SharedMemory, gates: int, parts: tuple[Part, ...]) -> int:
        """Hand over what to compute, and where; returns the plan's number.

        Args:
            memory: Shared; the gates come first in it.
            gates: Bytes of them.
            parts: In order.
        """
        self._plans += 1
        self._ask("bind", self._plans, memory.size, gates, parts, sends=memory.descriptor)
        return self._plans

    def drop(self, plan: int) -> None:
        """Forget a plan."""
        self._ask("drop", plan)

    def start(self, plan: int) -> int:
        """Have it compute by a plan; returns the turn. `finish` comes next."""
        self._turn = following(self._turn)
        self._control[PLAN] = plan
        self.bells.open(self._control, BEGUN, self._turn)
        return self._turn

    def finish(self) -> Exception | None:
        """Wait until it is through; returns what went wrong."""
        self.bells.wait(self._control, DONE, self._turn)
        if self._control[FAILED] != self._turn:
            return None
        try:
            self._ask("why")
        except Exception as error:
            return error
        return None

    def close(self) -> None:
        """End the process."""
        self._peer.close()
        while self._descriptors:
            os.close(self._descriptors.pop())
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            os.close(self._life)

    def _ask(self, *order: object, sends: int | None = None) -> None:
        try:
            self._peer.send(order)
            if sends is not None:
                send_handle(self._peer, sends, self._process.pid)
            answer = self._peer.recv()
        except (EOFError, ConnectionError) as error:
            raise SystemExit("the process of the other device is gone") from error
        if answer is not None:
            raise answer
