"""`ensemblectl predict`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble_operator.cli.addressing import server_at
from ensemble_operator.cli.errors import DataError
from ensemble_operator.cli.output import Output, emit, figure, grid, note, progress
from ensemble_operator.cli.predicting import predict, read_rows
from ensemble_operator.cli.tensors import Answer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import RenderableType

_MOST_ROWS = 20
_MOST_VALUES = 10


def show_predictions(
    address: str,
    port: int,
    data: Path,
    *,
    rows_per_request: int,
    parameters: Mapping[str, object],
    save: Path | None,
    output: Output,
) -> None:
    """Predict the rows of a file, and print or save the outputs.

    Raises:
        EnsembleError: The rows cannot be read, or the server cannot be reached or refused.
    """
    arrays, server = read_rows(data), server_at(address, port)
    with progress() as bar:
        task = bar.add_task("predicting", detail="")
        answer = predict(
            server,
            arrays,
            rows_per_request=rows_per_request,
            parameters=parameters,
            tick=lambda done, of: bar.update(task, completed=done, total=of, detail=f"{done} of {of} rows"),
        )
    if answer.parameters.get("partial"):
        note(f"partial answers; members missing: {answer.parameters.get('members_missing', 'not told')}")
    if save is not None:
        _save(save, answer)
    else:
        emit(output, _document(answer), lambda: _table(answer))


def _save(file: Path, answer: Answer) -> None:
    import numpy as np

    try:
        np.savez(file, allow_pickle=False, **dict(answer.outputs))
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from error
    note(f"wrote {', '.join(answer.outputs)} to {file}")


def _document(answer: Answer) -> dict[str, Any]:
    return {
        "outputs": {name: array.tolist() for name, array in answer.outputs.items()},
        "parameters": dict(answer.parameters),
    }


def _table(answer: Answer) -> RenderableType:
    from rich.console import Group

    total = len(next(iter(answer.outputs.values())))
    rows = [[str(i), *(_values(array[i]) for array in answer.outputs.values())] for i in range(min(total, _MOST_ROWS))]
    table = grid(f"{total} rows", ["row", *answer.outputs], rows)
    return table if total <= _MOST_ROWS else Group(table, f"and {total - _MOST_ROWS} more rows; -o json gives them all")


def _values(row: NDArray[np.generic]) -> str:
    """The first few values of one row's output, as short figures."""
    shown = [figure(float(value)) for value in row.reshape(-1)[:_MOST_VALUES].tolist()]
    return " ".join(shown) + (" ..." if row.size > _MOST_VALUES else "")
