"""The supervisor: starts the processes of an ensemble, watches them, restarts them, and cleans up after them.

It is the parent of them all, and they end when it does, however it ends. It imports no model library, so that a GPU's
process can be forked from it before torch has seen a device.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ensemble_runtime.config import DeviceKind, RuntimeConfig
from ensemble_runtime.devices.working_memory import keep_memory
from ensemble_runtime.errors import StartupError
from ensemble_runtime.members.storage import FetchedModel
from ensemble_runtime.pipeline import forge, repair
from ensemble_runtime.pipeline.arena import FAILED, READY, SERVICES, STARTING, Arena
from ensemble_runtime.pipeline.children import described, error_of, kill, run_child, startup_error
from ensemble_runtime.pipeline.combination import combine_until_killed
from ensemble_runtime.pipeline.lives import COMBINER, FORGE, GATEWAY, EarlyDeaths, Life, hanging
from ensemble_runtime.pipeline.prediction import predict_until_killed
from ensemble_runtime.pipeline.preparation import check_tokens, fetch_models, listen
from ensemble_runtime.pipeline.remote import hand_over_until_killed
from ensemble_runtime.pipeline.wiring import Wiring, adopt_orphans
from ensemble_runtime.span import laid_out

log = logging.getLogger(__name__)

GatewayMain = Callable[[Arena, Wiring, socket.socket], int]
"""Serves on a listening socket until SIGTERM; returns an exit code."""

_TICK = 0.2
_SHORT_TICK = 0.005
_HOPELESS = 5
"""So many quick deaths of a service before anything was ever ready end the runtime: there is nothing to wait for."""
_UNKNOWN = 5.0
"""Seconds that a prediction process waits to become known to the supervisor."""
_PAUSE = 0.001


def run(config: RuntimeConfig, cache: Path, gateway: GatewayMain) -> int:
    """Serve an ensemble until SIGTERM or SIGINT.

    Args:
        config: The ensemble.
        cache: Folder for fetched models.
        gateway: What the gateway's process runs.

    Returns:
        0 after an orderly stop.

    Raises:
        EnsembleError: it could not start; nothing is left behind.
    """
    config = laid_out(config)
    check_tokens(config)
    listener = listen(config)
    models = fetch_models(config, cache)  # held until the end: a process that is replaced loads its model again
    arena = Arena.create(config)
    keep_memory()
    supervisor = Supervisor(arena, models, listener, gateway)
    try:
        return supervisor.run()
    finally:
        supervisor.kill_all()


@dataclass(slots=True)
class Supervisor:
    """All processes of one ensemble."""

    arena: Arena
    models: Mapping[str, FetchedModel]
    listener: socket.socket
    gateway: GatewayMain
    wiring: Wiring = field(init=False)
    _lives: dict[str, Life] = field(init=False)
    _channel: socket.socket | None = None
    _forge_ready: bool = False
    _early_deaths: EarlyDeaths = field(default_factory=EarlyDeaths)
    _port: int = field(init=False)
    _started: bool = False
    _disowning: bool = False
    """The gateway died: until the combiner is gone, too, nobody may use the request table."""
    _unserved: bool = False
    """Some member has no worker now."""
    _stopping: bool = False
    _kill_at: float = 0.0

    def __post_init__(self) -> None:
        self.wiring = Wiring.lay(len(self.arena.geometry.processes))
        self._port = self.listener.getsockname()[1]
        roles = [COMBINER, GATEWAY, *(str(p) for p in range(len(self.arena.geometry.processes)))]
        if any(self._from_forge(p) for p in range(len(self.arena.geometry.processes))):
            roles.insert(0, FORGE)
        self._lives = {role: Life() for role in roles}

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Start everything and look after it until told to stop."""
        adopt_orphans()
        wakeup, signals = socket.socketpair()
        wakeup.setblocking(False)
        signals.setblocking(False)
        signal.set_wakeup_fd(signals.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, lambda *_: None)
        self.arena.service_pids[SERVICES.index("supervisor")] = os.getpid()
        while True:
            self._start_what_is_due()
            self._wait(wakeup)
            # Before the dead are counted: one that was ready before it died is started again.
            self._watch()
            self._reap()
            if self._disowning and not self._lives[COMBINER].pid:
                self._disown()
            if self._stopping and (not self._lives[GATEWAY].pid or time.monotonic() > self._kill_at):
                return 0

    def _wait(self, wakeup: socket.socket) -> None:
        sources = [wakeup] + ([self._channel] if self._channel else [])
        tick = _SHORT_TICK if self._unserved else _TICK
        readable, _, _ = select.select(sources, [], [], tick)
        if wakeup in readable:
            numbers = wakeup.recv(4096)
            if signal.SIGTERM in numbers or signal.SIGINT in numbers:
                self._stop()
            elif signal.SIGUSR1 in numbers and (pid := self._lives[GATEWAY].pid):
                os.kill(pid, signal.SIGUSR1)  # it sends its clients elsewhere
        if self._channel in readable:
            self._hear_forge()

    def _stop(self) -> None:
        if self._stopping:
            self._kill_at = 0.0
            return
        log.info("stopping")
        self._stopping = True
        self._kill_at = time.monotonic() + self.arena.config.serving.drain_ms / 1000 + 2
        self.listener.close()
        if pid := self._lives[GATEWAY].pid:
            os.kill(pid, signal.SIGTERM)

    def kill_all(self) -> None:
        """End every process and wait until it is gone."""
        signal.set_wakeup_fd(-1)
        for life in self._lives.values():
            if life.pid:
                kill(life.pid)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                time.sleep(0.002)

    # -- births -------------------------------------------------------------------------------------------------------

    def _from_forge(self, process: int) -> bool:
        """CPU cells share the forge's libraries; GPUs need a process without torch; simulated ones need neither."""
        return self._device_kind(process) is DeviceKind.CPU

    def _device_kind(self, process: int) -> DeviceKind | None:
        """None: its cells are those of a shard on another node."""
        config = self.arena.config
        name = config.cells[self.arena.geometry.processes[process][0]].device
        return next((device.kind for device in config.devices if device.name == name), None)

    def _start_what_is_due(self) -> None:
        if self._stopping:
            return
        now = time.monotonic()
        for role, life in self._lives.items():
            if life.pid or life.due is None or life.due > now:
                continue
            if role in (GATEWAY, COMBINER) and self._disowning:
                continue
            if role.isdigit() and self._from_forge(int(role)):
                if self._forge_ready and self._channel and not life.asked:
                    with contextlib.suppress(OSError):  # the forge has died; the next one will be asked
                        self._channel.send(role.encode())
                        life.asked = True
                continue
            self._born(role, self._fork(role))

    def _born(self, role: str, pid: int) -> None:
        self._lives[role].begin(pid)
        if role.isdigit():
            self.arena.pids[int(role)] = pid
        elif role != COMBINER:  # which says itself when it is ready
            self.arena.service_pids[SERVICES.index(role)] = pid

    def _fork(self, role: str) -> int:
        theirs: socket.socket | None = None
        if role == FORGE:
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            if role == FORGE and theirs is not None:
                run_child(
                    parent, lambda: forge.forge_until_killed(theirs, self._modules(), self._become_worker(parent))
                )
            if role == COMBINER:
                run_child(parent, lambda: combine_until_killed(self.arena, self.wiring, self.models))
            if role == GATEWAY:
                run_child(parent, lambda: self.gateway(self.arena, self.wiring, self.listener), is_gateway=True)
            self._become_worker(parent)(int(role))
        if theirs is not None:
            theirs.close()
        return pid

    def _become_worker(self, parent: int) -> Callable[[int], None]:
        def become(process: int) -> None:
            self.listener.close()
            run_child(parent, lambda: self._predict(process))

        return become

    def _predict(self, process: int) -> int:
        # A process that a dying forge left behind stays unknown, and another is started in its place.
        deadline = time.monotonic() + _UNKNOWN
        while self.arena.pids[process] != os.getpid():
            if time.monotonic() > deadline:
                raise StartupError("the supervisor does not know of this process")
            time.sleep(_PAUSE)
        if self._device_kind(process) is None:
            return hand_over_until_killed(self.arena, self.wiring, process)
        return predict_until_killed(self.arena, self.wiring, process, self.models)

    def _modules(self) -> tuple[str, ...]:
        config = self.arena.config
        on_cores = {device.name for device in config.devices if device.kind is DeviceKind.CPU}
        return forge.modules_for(config, [cell.member for cell in config.cells if cell.device in on_cores])

    def _hear_forge(self) -> None:
        if self._channel is None:
            return
        try:
            message = self._channel.recv(64)
        except OSError:  # it died with a number unread
            message = b""
        if message == forge.READY:
            self._forge_ready = True
        elif message:
            role, pid = message.decode().split()
            self._born(role, int(pid))
            if (status := self._early_deaths.of(int(pid), self._lives)) is not None:
                self._died(role, status)
        else:
            self._channel.close()
            self._channel = None

    # -- deaths -------------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            role = next((role for role, life in self._lives.items() if life.pid == pid), None)
            if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
                if role is not None:
                    self._lives[role].stopped = time.monotonic() if os.WIFSTOPPED(status) else None
            elif role is None:
                self._early_deaths.note(pid, status, self._lives)
            else:
                self._died(role, status)

    def _died(self, role: str, status: int) -> None:
        life = self._lives[role]
        life.pid = 0
        if role.isdigit():
            self._worker_died(int(role), status)
        else:
            self.arena.service_pids[SERVICES.index(role)] = 0
        if role == COMBINER:
            self.arena.combining_since[0] = 0
        if self._stopping:
            return
        pause = life.end()
        log.warning("process ended", extra={"role": role, "status": described(status), "restart_in": pause})
        if role == FORGE:
            self._forge_died()
        elif role == GATEWAY:
            self._gateway_died()
        if role == COMBINER and not self._started and (message := self.arena.combiner_error.get()):
            raise error_of(os.waitstatus_to_exitcode(status), message)
        if life.quick_deaths >= _HOPELESS and not self._started:
            raise StartupError(f"the {role} process {described(status)} {life.quick_deaths} times in a row")

    def _worker_died(self, process: int, status: int) -> None:
        """Give back what the process had in hand; while starting, a death is the end."""
        self.arena.pids[process] = 0
        self.arena.idle[process] = 0
        cells = self.arena.geometry.processes[process]
        if not self._started:
            raise startup_error(self.arena, cells, status)
        for cell in cells:
            if self.arena.state[cell] != FAILED:
                self.arena.state[cell] = STARTING
            self.arena.batch_started[cell] = 0
            self.arena.restarts[cell] += 1
            repair.give_back(self.arena, self.wiring, cell)

    def _forge_died(self) -> None:
        self._forge_ready = False
        if self._channel:
            self._channel.close()
            self._channel = None
        self._early_deaths.forget()
        for life in self._lives.values():
            life.asked = False

    def _gateway_died(self) -> None:
        """Its requests died with it: a new combiner finds out from the arena what its successor has to account for."""
        self._disowning = True
        combiner = self._lives[COMBINER]
        if combiner.pid:
            kill(combiner.pid)

    def _disown(self) -> None:
        repair.disown(self.arena, self.wiring)
        self._disowning = False
        for role in (COMBINER, GATEWAY):
            self._lives[role].due = 0.0

    # -- the watch ----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Kill what hangs; see to members without a worker; notice when everything is ready for the first time."""
        for pid in hanging(self.arena, self._lives, started=self._started):
            kill(pid)
        members = range(self.arena.geometry.members)
        self._unserved = sum(repair.put_down_abandoned(self.arena, self.wiring, member) for member in members) > 0
        combiner_ready = self.arena.service_pids[SERVICES.index(COMBINER)]
        if not self._started and combiner_ready and all(state == READY for state in self.arena.state):
            self._started = True
            log.info("ready", extra={"port": self._port})
