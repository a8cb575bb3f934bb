"""Sends rows to a server and gathers the answers, in the order of the rows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from ensemble_operator.cli.connection import Connection, connect
from ensemble_operator.cli.errors import DataError, ServerRefusedError
from ensemble_operator.cli.server import Server, reason
from ensemble_operator.cli.tensors import Answer, checked, decode, encode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

_CONNECTIONS = 4
_MOST_REFUSALS = 100
_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0


def read_rows(file: Path) -> Arrays:
    """Read rows: .npy (one input), .npz (an array an input) or .json (a list, or a mapping from inputs to lists).

    Raises:
        DataError: The file cannot be read, or is none of these.
    """
    import numpy as np

    if file.suffix not in (".npy", ".npz", ".json"):
        raise DataError(f"{file}: expected a file named .npy, .npz or .json")
    try:
        if file.suffix == ".json":
            content = json.loads(file.read_bytes())
            arrays = content if isinstance(content, dict) else {"": content}
            return {name: np.asarray(rows) for name, rows in arrays.items()}
        loaded = np.load(file, allow_pickle=False)
        return {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from error
    except (ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"{file}: not {file.suffix[1:]} with numbers in it: {error}") from error


def predict(
    server: Server,
    arrays: Arrays,
    *,
    rows_per_request: int,
    parameters: Mapping[str, object],
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> Answer:
    """Predict all rows, over a few connections at once.

    Args:
        server: Who predicts.
        arrays: Rows of every input, batch axis first.
        rows_per_request: Most rows of a request; the server's own limit counts as well.
        parameters: Of every request, e.g. ``return_members``.
        tick: Told how many rows are done, of how many.

    Returns:
        The outputs of all rows; the parameters say `partial` if any request's answer was.

    Raises:
        DataError: The rows are not what the ensemble takes.
        ServerRefusedError: A request failed.
        ServerUnreachableError: The connection broke.
    """
    fitting, rows = checked(server, arrays)
    size = min(rows_per_request, server.max_rows)
    parts = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
    try:
        answers = asyncio.run(_gather(server, fitting, parts, parameters, lambda done: tick(done, rows)))
    except ExceptionGroup as group:  # what one connection meets, the others meet too
        raise group.exceptions[0] from None
    return _joined(answers)


async def _gather(
    server: Server,
    arrays: Arrays,
    parts: list[slice],
    parameters: Mapping[str, object],
    tick: Callable[[int], None],
) -> list[Answer]:
    answers: list[Answer | None] = [None] * len(parts)
    waiting = iter(range(len(parts)))
    done = 0

    async def work() -> None:
        nonlocal done
        connection = await connect(server.base)
        try:
            for i in waiting:
                answers[i] = await _ask(connection, encode(server, arrays, parts[i], parameters))
                done += parts[i].stop - parts[i].start
                tick(done)
        finally:
            connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(_CONNECTIONS, len(parts))):
            group.create_task(work())
    return [answer for answer in answers if answer is not None]


async def _ask(connection: Connection, request: bytes) -> Answer:
    for _ in range(_MOST_REFUSALS):
        reply = await connection.request(request)
        if reply.status == 200:
            return decode(reply.body, reply.header_length)
        if reply.status != 503:
            break
        await asyncio.sleep(min(reply.retry_after or _PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS))
    raise ServerRefusedError(f"{reply.status} {reason(reply.body)}")


def _joined(answers: list[Answer]) -> Answer:
    import numpy as np

    if len({tuple(answer.outputs) for answer in answers}) != 1:
        raise ServerRefusedError("the answers have different outputs: some are partial; ask again, or for less")
    outputs = {name: np.concatenate([a.outputs[name] for a in answers]) for name in answers[0].outputs}
    parameters: dict[str, Any] = {}
    for answer in answers:
        parameters.update(answer.parameters)
    return Answer(outputs, parameters)
