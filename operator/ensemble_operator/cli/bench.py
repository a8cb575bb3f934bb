"""`ensemblectl bench`."""

from __future__ import annotations

from ensemble_operator.cli.addressing import server_at
from ensemble_operator.cli.errors import DataError
from ensemble_operator.cli.loading import Load, Result, put_load
from ensemble_operator.cli.output import Output, emit, figure, grid, progress


def show_load(address: str, port: int, *, connections: int, rows: int, seconds: float, output: Output) -> None:
    """Put load on a server and print what came back.

    Raises:
        EnsembleError: The server cannot be reached, or answered with an error.
    """
    server = server_at(address, port)
    if rows > server.max_rows:
        raise DataError(f"--rows: got {rows}, expected at most {server.max_rows}, the server's limit for one request")
    with progress() as bar:
        task = bar.add_task("loading", total=1, detail=f"{connections} connections, {rows} rows a request")
        result = put_load(server, Load(connections, rows, seconds), lambda share: bar.update(task, completed=share))
    promise = server.predicted_rows_per_second
    document = result.document() | ({"predictedRowsPerSecond": promise} if promise else {})
    emit(output, document, lambda: grid(f"Load on '{server.model}'", ["", ""], _rows(result, promise)))


def _rows(result: Result, promise: float | None) -> list[list[str]]:
    document = result.document()
    rows = [
        ["requests/s", figure(document["requestsPerSecond"])],
        ["rows/s", figure(result.rows_per_second)],
        *([name + " latency", f"{figure(ms)} ms"] for name, ms in document["latencyMs"].items()),
        ["requests", figure(result.requests)],
    ]
    if result.refused:
        rows.append(["refused (503), sent again", figure(result.refused)])
    if promise:
        rows.append(["of the plan's prediction", f"{result.rows_per_second / promise:.0%} of {figure(promise)} rows/s"])
    return rows
