"""The truth about the pipeline at this moment, as the arena tells it."""

from __future__ import annotations

from collections.abc import Sequence

from ensemble_runtime.pipeline.arena import FAILED, READY, SERVICES, STATE_NAMES, Arena
from ensemble_runtime.pipeline.port import CellStatus, Health, RemoteStatus


class HealthReader:
    """Reads the state of every cell and process."""

    def __init__(self, arena: Arena, needed: int) -> None:
        """Read an arena; `needed` is the fewest members of an answer."""
        self._arena = arena
        self._config = config = arena.config
        self._needed = needed
        self._names = [member.name for member in config.members]
        self._combined = [i for i, member in enumerate(config.members) if not member.shadow]
        self._columns: dict[tuple[str, str], list[int]] = {}
        """The cells of each device and member: one, but of a remote one for each connection."""
        for c, cell in enumerate(config.cells):
            self._columns.setdefault((cell.device, cell.member), []).append(c)

    def read(self) -> Health:
        """See `port.Pipeline.health`."""
        arena = self._arena
        cells = tuple(self._cell(lanes) for lanes in self._columns.values())
        served = {cell.member for cell in cells if cell.state == STATE_NAMES[READY]}
        unserved = [self._names[m] for m in self._combined if self._names[m] not in served]
        processes = {name: arena.service_pids[i] for i, name in enumerate(SERVICES) if arena.service_pids[i]}
        reasons = []
        if len(self._combined) - len(unserved) < self._needed:
            reasons.append(f"no worker is ready for {', '.join(unserved)}{self._troubles(unserved)}")
        if "combiner" not in processes:
            trouble = f"; its last error: {text}" if (text := arena.combiner_error.get()) else ""
            reasons.append(f"the combination process is being restarted{trouble}")
        queued = {name: queued_rows(arena, m) for m, name in enumerate(self._names)}
        remotes = tuple(self._remote(i) for i in range(len(self._config.remotes)))
        return Health(not reasons, "; ".join(reasons), cells, processes, queued, remotes)

    def _remote(self, index: int) -> RemoteStatus:
        remote = self._config.remotes[index]
        lanes = next((lanes for (device, _), lanes in self._columns.items() if device == remote.name), [])
        up = sum(self._arena.state[cell] == READY for cell in lanes)
        return RemoteStatus(remote.name, remote.url, up, *self._arena.remotes[index])

    def _troubles(self, members: Sequence[str]) -> str:
        """Why these members' cells cannot start, or shards on other nodes do not serve them."""
        remotes = {remote.name for remote in self._config.remotes}
        cells = [
            c
            for c, cell in enumerate(self._config.cells)
            if cell.member in members and (cell.device in remotes or self._arena.state[c] == FAILED)
        ]
        found = dict.fromkeys(text for c in cells if (text := self._arena.errors[c].get()))
        return f" ({'; '.join(found)})" if found else ""

    def _cell(self, lanes: list[int]) -> CellStatus:
        """A cell; one of a remote has a part for each connection, and serves if one of them does."""
        arena = self._arena
        index = next((lane for lane in lanes if arena.state[lane] == READY), lanes[0])
        cell, process = self._config.cells[index], arena.geometry.process_of(index)
        batches, rows, nanoseconds, errors = arena.counters[lanes].sum(axis=0).tolist()
        return CellStatus(
            device=cell.device,
            member=cell.member,
            batch_size=cell.batch_size,
            state=STATE_NAMES[arena.state[index]],
            pid=arena.pids[process],
            restarts=arena.restarts[index],
            batches=batches,
            rows=rows,
            busy_seconds=nanoseconds / 1e9,
            errors=errors,
            observed_device=arena.observed[process].get(),
        )


def queued_rows(arena: Arena, member: int) -> int:
    """Rows that wait for a member."""
    return sum(int(queue.peek(max(0, len(queue)))[:, 2].sum()) for queue in arena.queues[member])
