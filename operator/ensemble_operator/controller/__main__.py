"""Starts the operator: ``python -m ensemble_operator.controller``."""

from __future__ import annotations

import asyncio
import os
import sys

from ensemble_operator.controller.main import run
from ensemble_operator.controller.settings import Settings
from ensemble_runtime.errors import EnsembleError


def main() -> None:
    """Run until SIGTERM or SIGINT; the exit code tells why it ended."""
    try:
        asyncio.run(run(Settings.from_environment(os.environ)))
    except EnsembleError as error:
        sys.stderr.write(f"ensemble-operator: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
