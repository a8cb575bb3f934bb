"""Runs the runtime's one-shot commands, which know devices and models, in a process of their own.

The control plane imports neither torch nor NVML: it asks `python -m ensemble_runtime` and reads JSON lines.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ensemble_runtime.errors import EnsembleError

_PREFIX = "ensemble-runtime: "


class RuntimeCommandError(EnsembleError):
    """A command of the runtime failed; carries the exit code that the runtime gave."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def records(*arguments: str, document: object = None) -> Iterator[Any]:
    """Run `python -m ensemble_runtime ARGUMENTS` and give each line of its output, parsed, as it comes.

    The process ends with the iteration, also when that is broken off.

    Args:
        arguments: The command and its options.
        document: What the command is to read, in JSON; it goes through stdin, so that no file is left behind.

    Raises:
        RuntimeCommandError: The command failed; the message is its own.
    """
    command = [sys.executable, "-m", "ensemble_runtime", "--log-level", "WARNING", *arguments]
    if document is not None:
        command.append("/dev/stdin")
    with tempfile.TemporaryFile("w+") as errors:  # a file, for nobody reads a pipe while the output is being read
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdin is not None and process.stdout is not None
        try:
            with suppress(BrokenPipeError), process.stdin:  # it ended without reading; its exit code tells why
                json.dump(document, process.stdin)
            for line in process.stdout:
                yield json.loads(line)
            code = process.wait()
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()
        if code:
            errors.seek(0)
            raise RuntimeCommandError(_reason(errors.read(), code), code if code > 0 else 1)


def _reason(errors: str, code: int) -> str:
    """What the command said of its failure: all that follows its prefix, else its last line."""
    _, found, message = errors.rpartition(_PREFIX)
    lines = errors.strip().splitlines()
    fallback = lines[-1] if lines else "no message"
    return message.strip() if found else f"the runtime ended with exit code {code}: {fallback}"
