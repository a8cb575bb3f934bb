"""One ensemble of real processes with a test's script in its gateway; run through a fork server, see conftest.py.

What it sends to the test are pairs: ("refused", (class, exit code, message)) if the ensemble could not start,
("told", value) as often as the script likes, and at its end ("result", value) or ("raised", traceback).
"""

from __future__ import annotations

import asyncio
import logging
import os
import runpy
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from ensemble_runtime.config import RuntimeConfig
from ensemble_runtime.errors import EnsembleError
from ensemble_runtime.members.simulated_model import simulated_outputs
from ensemble_runtime.pipeline import supervisor
from ensemble_runtime.pipeline.arena import Arena
from ensemble_runtime.pipeline.batching import Batcher
from ensemble_runtime.pipeline.leases import RowLease
from ensemble_runtime.pipeline.port import CellStatus, Options, Outcome
from ensemble_runtime.pipeline.wiring import Wiring

PATIENCE = 30.0


@dataclass(frozen=True)
class Answer:
    """What came back for a request."""

    outcome: Outcome
    output: np.ndarray | None
    members: dict[str, np.ndarray]
    disagreement: dict[str, np.ndarray] | None


@dataclass
class Client:
    """What a script works with."""

    batcher: Batcher
    outbox: Connection
    life: int
    """The how manyth gateway of this ensemble this is, from 1."""
    files: Path
    sent: int = field(default=0)

    @property
    def config(self) -> RuntimeConfig:
        return self.batcher.config

    def tell(self, value: Any) -> None:
        self.outbox.send(("told", value))

    def submit(self, values: np.ndarray, **options: Any) -> tuple[RowLease, asyncio.Future[Outcome]]:
        """Lease, fill and submit; the caller releases."""
        lease = self.batcher.lease(len(values), [values.shape[1:]])
        np.frombuffer(lease.input(0), values.dtype)[:] = values.reshape(-1)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.batcher.submit(lease, Options(**options), future.set_result)
        return lease, future

    async def ask(self, values: np.ndarray, **options: Any) -> Answer:
        """One request from its lease to its release."""
        lease, future = self.submit(values, **options)
        try:
            outcome = await asyncio.wait_for(future, PATIENCE)
            if not outcome.answered:
                return Answer(outcome, None, {}, None)
            used = [m.name for m in self.config.members if not m.shadow and m.name not in outcome.missing]
            return Answer(
                outcome,
                lease.output(0).copy(),
                {name: lease.member_output(name, 0).copy() for name in used},
                {k: v.copy() for k, v in lease.disagreement().items()} if options.get("disagreement") else None,
            )
        finally:
            self.batcher.release(lease)

    def rows(self, count: int) -> np.ndarray:
        """Rows that no other request has had."""
        self.sent += 1
        return (1000.0 * (self.sent % 5000) + np.arange(count)[:, None] + np.zeros(4)).astype("f4")

    def expected(self, values: np.ndarray, without: tuple[str, ...] = ()) -> np.ndarray:
        """The mean of the simulated members' answers."""
        columns = [i for i, m in enumerate(self.config.members) if not m.shadow and m.name not in without]
        return np.mean([simulated_outputs([values], self.config.outputs, c)[0] for c in columns], axis=0)

    async def ask_and_check(self, rows: int, **options: Any) -> Answer:
        """A request that must be answered by all members, and rightly."""
        values = self.rows(rows)
        answer = await self.ask(values, **options)
        assert answer.outcome.answered, answer.outcome
        without = tuple(answer.outcome.missing)
        np.testing.assert_allclose(answer.output, self.expected(values, without), rtol=1e-6)
        for name, output in answer.members.items():
            column = [m.name for m in self.config.members].index(name)
            np.testing.assert_allclose(output, simulated_outputs([values], self.config.outputs, column)[0], rtol=1e-6)
        return answer

    async def until(self, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Wait until a condition holds."""
        limit = asyncio.get_running_loop().time() + seconds
        while not condition():
            assert asyncio.get_running_loop().time() < limit, f"not within {seconds} s; {self.batcher.health()}"
            await asyncio.sleep(0.002)

    async def settled(self) -> None:
        """Wait until nothing is in the pipeline."""
        await self.until(lambda: self.batcher.in_flight == 0)

    def cells(self, member: str) -> list[CellStatus]:
        return [cell for cell in self.batcher.health().cells if cell.member == member]

    def pid(self, role: str) -> int:
        """The pid of a service, or of the first cell of a member; 0 if it has none now."""
        health = self.batcher.health()
        if role in ("supervisor", "gateway", "combiner", "forge"):
            return health.processes.get(role, 0)
        return self.cells(role)[0].pid

    def kill(self, role: str, number: int = signal.SIGKILL) -> int:
        """Send a signal; returns the pid that got it."""
        pid = self.pid(role)
        assert pid, f"{role} does not run"
        os.kill(pid, number)
        return pid

    async def back(self, role: str, pid: int) -> None:
        """Wait until a role has another process than this, and everything is ready."""
        await self.until(lambda: self.pid(role) not in (0, pid) and self.batcher.health().ready)


def main(config: str, files: str, script_file: str, script: str, arguments: tuple[Any, ...], outbox: Connection) -> int:
    """Run the ensemble; returns its exit code."""
    os.setsid()  # whatever has this session is a process of this ensemble
    folder = Path(files)
    os.dup2(os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    parent = os.getpid()

    def gateway(arena: Arena, wiring: Wiring, listener: socket.socket) -> int:
        with (folder / "lives").open("a") as lives:
            lives.write("I")
        return uvloop.run(serve(arena, wiring))

    async def serve(arena: Arena, wiring: Wiring) -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        client = Client(Batcher(arena, wiring, loop), outbox, len((folder / "lives").read_text()), folder)
        try:
            # The ensemble is ready before its shadows are.
            await client.until(lambda: all(cell.state == "Ready" for cell in client.batcher.health().cells))
            await client.until(lambda: client.batcher.health().ready)
            function = runpy.run_path(script_file)[script]
            outbox.send(("result", await function(client, *arguments)))
        except Exception:
            outbox.send(("raised", traceback.format_exc()))
        if not stop.is_set():
            os.kill(parent, signal.SIGTERM)
        await stop.wait()
        return 0

    try:
        return supervisor.run(RuntimeConfig.model_validate_json(config), folder / "cache", gateway)
    except EnsembleError as error:
        outbox.send(("refused", (type(error).__name__, error.exit_code, str(error))))
        return error.exit_code


if __name__ == "<driver>":
    sys.exit(main(*job))  # type: ignore[name-defined]  # noqa: F821  # given by run_path
