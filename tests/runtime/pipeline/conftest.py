"""Ensembles of real processes for the tests, each with a script of the test in its gateway."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from ensemble_runtime.config import RuntimeConfig

DRIVER = Path(__file__).with_name("driver.py")
PATIENCE = 60.0


def simulated(
    members: Any = ("a", "b"),
    cells: list[tuple[str, str, int]] | None = None,
    seconds: dict[str, float] | float = 0.0,
    **changes: Any,
) -> RuntimeConfig:
    """An ensemble on simulated devices.

    Args:
        members: Names, or fields of members.
        cells: (device, member, batch size); default: a device and a batch size of 8 for each member.
        seconds: Of one batch, by member or for all.
        changes: Other fields of the configuration.
    """
    members = [{"name": m} if isinstance(m, str) else m for m in members]
    names = [m["name"] for m in members]
    cells = cells or [(f"on-{name}", name, 8) for name in names]
    costs = seconds if isinstance(seconds, dict) else dict.fromkeys(names, seconds)
    stated = {name: {1: costs.get(name, 0.0), 64: costs.get(name, 0.0)} for name in names}
    model = {"uri": "file:///none", "format": "ONNX"}
    return RuntimeConfig.model_validate(
        {
            "name": "ensemble",
            "members": [{"model": model, **m} for m in members],
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [4]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [3]}],
            "combination": {"rule": "Mean", "predictions": "Values"},
            "devices": [
                {"name": d, "kind": "Simulated", "type": "sim", "memoryBytes": 1 << 30, "seconds": stated}
                for d in dict.fromkeys(device for device, _, _ in cells)
            ],
            "cells": [{"device": d, "member": m, "batchSize": b} for d, m, b in cells],
            "listen": {"port": 0},
            **changes,
        }
    )


@dataclass
class Ensemble:
    """A running ensemble, seen from outside. Its process is the supervisor."""

    process: BaseProcess
    inbox: Connection
    folder: Path

    def hear(self, seconds: float = PATIENCE) -> Any:
        """What the script tells next, or its result; fails with its traceback and the log if it ended otherwise."""
        try:
            if self.inbox.poll(seconds):
                kind, value = self.inbox.recv()
                if kind in ("told", "result"):
                    return value
                pytest.fail(f"{kind}: {value}\n{self.log()}")
        except EOFError:
            pytest.fail(f"ended without a word, exit code {self.exit_code()}\n{self.log()}")
        pytest.fail(f"nothing heard for {seconds} s\n{self.log()}")

    def refusal(self) -> tuple[str, int, str]:
        """Class, exit code and message of the error with which the start ended; nothing may be left."""
        assert self.inbox.poll(PATIENCE), self.log()
        kind, (name, code, message) = self.inbox.recv()
        assert kind == "refused"
        assert self.exit_code() == code
        self.assert_gone()
        return name, code, message

    def exit_code(self, seconds: float = PATIENCE) -> int | None:
        """The supervisor's exit code, negative if a signal ended it."""
        self.process.join(seconds)
        return self.process.exitcode

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the supervisor."""
        assert self.process.pid
        os.kill(self.process.pid, number)

    def processes(self) -> list[psutil.Process]:
        """All living processes of this ensemble."""
        return [p for p in psutil.process_iter() if _session(p.pid) == self.process.pid and _living(p)]

    def assert_gone(self, seconds: float = 2.0) -> None:
        """No process is left, hence nobody who could hold the anonymous shared memory."""
        limit = time.monotonic() + seconds
        while left := self.processes():
            assert time.monotonic() < limit, f"left behind: {left}\n{self.log()}"
            time.sleep(0.01)

    def log(self) -> str:
        file = self.folder / "log.txt"
        return file.read_text()[-6000:] if file.exists() else "no log"


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _living(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@pytest.fixture(scope="session")
def fork_server() -> Any:
    """Forks from an interpreter with the pipeline imported, and nothing of the tests, torch above all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["uvloop", "pytest", "ensemble_runtime.pipeline.supervisor"])
    return context


Start = Callable[..., Ensemble]


@pytest.fixture
def start(fork_server: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Start]:
    """start(config, "script", *arguments): an ensemble with a top-level coroutine of the test's file in its gateway."""
    started: list[Ensemble] = []

    def start_one(config: RuntimeConfig, script: str = "nothing", *arguments: Any) -> Ensemble:
        inbox, outbox = fork_server.Pipe(duplex=False)
        folder = tmp_path / str(len(started))
        folder.mkdir()
        job = (config.model_dump_json(by_alias=True), str(folder), str(request.path), script, arguments, outbox)
        process = fork_server.Process(target=runpy.run_path, args=(str(DRIVER), {"job": job}, "<driver>"))
        process.start()
        outbox.close()
        started.append(Ensemble(process, inbox, folder))
        return started[-1]

    yield start_one
    for ensemble in started:
        ensemble.process.kill()
        ensemble.process.join()
        ensemble.assert_gone()


@pytest.fixture
def run(start: Start) -> Callable[..., Any]:
    """run(config, "script", *arguments): the script's result, after an orderly stop that leaves nothing behind."""

    def run_to_the_end(config: RuntimeConfig, script: str, *arguments: Any) -> Any:
        ensemble = start(config, script, *arguments)
        result = ensemble.hear()
        assert ensemble.exit_code() == 0, ensemble.log()
        ensemble.assert_gone()
        return result

    return run_to_the_end


@pytest.fixture(scope="session", name="simulated")
def simulated_fixture() -> Callable[..., RuntimeConfig]:
    return simulated


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the models that models.py writes."""
    folder = tmp_path_factory.mktemp("models")
    script = Path(__file__).with_name("models.py")
    subprocess.run([sys.executable, "-W", "ignore", str(script), str(folder)], check=True, timeout=100)
    return folder


@pytest.fixture(scope="session")
def on_cores(model_files: Path) -> Callable[..., RuntimeConfig]:
    """on_cores({"a": {"file": "moody", ...}, ...}, **changes): TorchScript members, a core for each while there are."""

    def configure(members: dict[str, dict[str, Any]], stacking: str | None = None, **changes: Any) -> RuntimeConfig:
        def source(name: str) -> dict[str, Any]:
            return {"uri": (model_files / f"{name}.pt").as_uri(), "format": "TorchScript"}

        cores = sorted(os.sched_getaffinity(0))
        places = {name: f"core-{cores[i % len(cores)]}" for i, name in enumerate(members)}
        combination = {"rule": "Mean", "predictions": "Values"}
        if stacking:
            combination = {"rule": "Stacking", "predictions": "Values", "model": source(stacking)}
        return RuntimeConfig.model_validate(
            {
                "name": "ensemble",
                "members": [
                    {"name": name, "model": source(fields["file"]), **{k: v for k, v in fields.items() if k != "file"}}
                    for name, fields in members.items()
                ],
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [4]}],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": [3]}],
                "combination": combination,
                "devices": [
                    {"name": place, "kind": "CPU", "type": "cpu-1", "memoryBytes": 1 << 30, "cores": [int(place[5:])]}
                    for place in dict.fromkeys(places.values())
                ],
                "cells": [{"device": place, "member": name, "batchSize": 8} for name, place in places.items()],
                "listen": {"port": 0},
                **changes,
            }
        )

    return configure
