"""How long a tensor takes from one device to the other: measured between processes, or between host and GPU."""

from __future__ import annotations

import math
import mmap
import os
import statistics
import time
from dataclasses import replace

import numpy as np

from ensemble_runtime.config import Device, DeviceKind
from ensemble_runtime.devices.cuda import Block, Copy
from ensemble_runtime.partition.beside import Part
from ensemble_runtime.partition.gates import LINE, lines
from ensemble_runtime.partition.gpu import Gpu, pinned_pages
from ensemble_runtime.partition.instance import Link
from ensemble_runtime.partition.second import SecondDevice, SharedMemory

_SMALL, _LARGE = 4 * 2**10, 16 * 2**20
_TURNS = 200


def links(devices: tuple[Device, Device], room: float = math.inf) -> tuple[Link, Link]:
    """The links from the first device to the second, and back; they are bound as the executor's are.

    Args:
        devices: The scarce one first.
        room: Bytes that may be taken of a GPU.
    """
    if any(device.kind is DeviceKind.GPU for device in devices):
        # The cores see what comes from the GPU, and the GPU copies what comes from them, once they are told.
        told = _wake_up(devices)
        to_gpu, from_gpu = (replace(link, latency=link.latency + told) for link in _copies(int(min(_LARGE, room))))
        return (from_gpu, to_gpu) if devices[0].kind is DeviceKind.GPU else (to_gpu, from_gpu)
    # A tensor is handed over in place: what it costs is that the other process sees it. The consumer's reads from the
    # producer's cache are part of the consumer's time.
    link = Link(_wake_up(devices), 0.0)
    return link, link


def _wake_up(devices: tuple[Device, Device]) -> float:
    """Seconds from opening a gate to the other process being through it."""
    turns = range(2 * _TURNS)
    memory = SharedMemory(LINE * len(turns))
    gates = lines(memory.map, memory.size)
    answers = tuple(Part(i, None, (), (), i + 1) for i in turns[::2])
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, devices[0].cores or before)  # of this thread
    second = SecondDevice(devices[1])
    try:
        turn = second.start(second.bind(memory, memory.size, answers))
        times = []
        for i in turns[::2]:
            asked = time.perf_counter()
            second.bells.open(gates, i, turn)
            second.bells.wait(gates, i + 1, turn)
            times.append(time.perf_counter() - asked)
        second.finish()
        return statistics.median(times) / 2
    finally:
        second.close()
        os.sched_setaffinity(0, before)


def _copies(large: int) -> tuple[Link, Link]:
    """Latency and bandwidth of copies to the GPU and from it, made as `gpu` makes them, of so many bytes at most."""
    gpu, large = Gpu(), max(large, 2 * _SMALL)
    host = mmap.mmap(-1, large)
    address = np.frombuffer(host, np.uint8).ctypes.data
    block, pinned = Block(gpu.cuda, large), pinned_pages(gpu.cuda, [Copy(0, address, large)])
    seconds = {}
    for size in (_SMALL, large):
        copy = Copy(block.address, address, size)
        to, back = [], []
        for _ in range(20):
            moments = [time.perf_counter()]
            gpu.up.up(copy)
            gpu.up.finish()
            moments.append(time.perf_counter())
            gpu.down.down(copy)
            gpu.down.finish()
            moments.append(time.perf_counter())
            to.append(moments[1] - moments[0])
            back.append(moments[2] - moments[1])
        seconds[size] = statistics.median(to), statistics.median(back)
    del pinned  # before the memory that it pins
    found = []
    for direction in (0, 1):
        little, much = seconds[_SMALL][direction], seconds[large][direction]
        per_byte = max(0.0, (much - little) / (large - _SMALL))
        found.append(Link(max(0.0, little - _SMALL * per_byte), per_byte))
    return found[0], found[1]
