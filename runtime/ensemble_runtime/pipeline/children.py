"""The supervisor's child processes: what they run first, how they are ended, and what their ends mean."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable

from ensemble_runtime.errors import EnsembleError, StartupError
from ensemble_runtime.pipeline.arena import Arena
from ensemble_runtime.pipeline.wiring import die_with_parent

log = logging.getLogger(__name__)


def run_child(parent: int, main: Callable[[], int], *, is_gateway: bool = False) -> None:
    """Run a process's main function in it; never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Both may reach the whole group, while requests are in flight; the supervisor decides.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL if is_gateway else signal.SIG_IGN)
        die_with_parent(parent)
        code = main()
    except EnsembleError as error:
        log.error("process failed", extra={"error": str(error)})
        code = error.exit_code
    except BaseException:
        log.exception("process failed")
    finally:
        os._exit(code)


def startup_error(arena: Arena, cells: tuple[int, ...], status: int) -> EnsembleError:
    """Why a prediction process ended before it was ready, in its own words if it left any."""
    member = arena.config.cells[cells[0]].member
    message = next((text for cell in cells if (text := arena.errors[cell].get())), "")
    code = os.waitstatus_to_exitcode(status)
    if message and code > 0:
        return error_of(code, message)
    return StartupError(f"the process of member '{member}' {described(status)} while starting")


def error_of(code: int, message: str) -> EnsembleError:
    """The error that another process ended with."""
    return next((k for k in EnsembleError.__subclasses__() if k.exit_code == code), StartupError)(message)


def described(status: int) -> str:
    """A wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    return f"was killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exited with code {code}"


def kill(pid: int) -> None:
    """End a process, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
