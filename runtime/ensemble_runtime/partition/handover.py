"""How long a tensor takes from one device to the other: measured between processes, or between host and GPU."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import replace

import numpy as np
import onnxruntime

from ensemble_runtime.config import Device, DeviceKind
from ensemble_runtime.partition.beside import Part, words
from ensemble_runtime.partition.gates import LINE
from ensemble_runtime.partition.instance import Link
from ensemble_runtime.partition.second import SecondDevice, SharedMemory

_SMALL, _LARGE = 4 * 2**10, 16 * 2**20
_TURNS = 200


def links(devices: tuple[Device, Device]) -> tuple[Link, Link]:
    """The links from the first device to the second, and back; they are bound as the executor's are."""
    if any(device.kind is DeviceKind.GPU for device in devices):
        # The cores see what comes from the GPU, and the GPU copies what comes from them, once they are told.
        told = _wake_up(devices)
        to_gpu, from_gpu = (replace(link, latency=link.latency + told) for link in _copies())
        return (from_gpu, to_gpu) if devices[0].kind is DeviceKind.GPU else (to_gpu, from_gpu)
    # A tensor is handed over in place: what it costs is that the other process sees it. The consumer's reads from the
    # producer's cache are part of the consumer's time.
    link = Link(_wake_up(devices), 0.0)
    return link, link


def _wake_up(devices: tuple[Device, Device]) -> float:
    """Seconds from opening a gate to the other process being through it."""
    turns = range(2 * _TURNS)
    memory = SharedMemory(LINE * len(turns))
    gates = words(memory.map, memory.size)
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


def _copies() -> tuple[Link, Link]:
    """Latency and bandwidth of copies to the GPU and from it, made as `gpu` makes them."""
    seconds = {}
    for size in (_SMALL, _LARGE):
        host = np.zeros(size, np.uint8)
        value = onnxruntime.OrtValue.ortvalue_from_numpy(host, "cuda", 0)
        to, back = [], []
        for _ in range(20):
            moments = [time.perf_counter()]
            value.update_inplace(host)
            moments.append(time.perf_counter())
            value.numpy()
            moments.append(time.perf_counter())
            to.append(moments[1] - moments[0])
            back.append(moments[2] - moments[1])
        seconds[size] = statistics.median(to), statistics.median(back)
    found = []
    for direction in (0, 1):
        small, large = seconds[_SMALL][direction], seconds[_LARGE][direction]
        per_byte = max(0.0, (large - small) / (_LARGE - _SMALL))
        found.append(Link(max(0.0, small - _SMALL * per_byte), per_byte))
    return found[0], found[1]
