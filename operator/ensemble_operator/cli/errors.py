"""What can go wrong in the command line alone; beside the runtime's errors, with exit codes of their own."""

from ensemble_runtime.errors import EnsembleError


class DataError(EnsembleError):
    """Rows to predict cannot be read, or are not what the ensemble takes."""

    exit_code = 65


class ServerUnreachableError(EnsembleError):
    """No server answers at the address, or it hangs up."""

    exit_code = 74


class ServerRefusedError(EnsembleError):
    """The server answered with an error, or with what is not the Open Inference Protocol."""

    exit_code = 76


class RuntimeEndedError(EnsembleError):
    """The runtime ended by itself; carries its exit code. What it had to say is on stderr already."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the runtime ended with exit code {code}; its message is above")
        self.exit_code = code if code > 0 else 1


class ClusterConfigError(EnsembleError):
    """No kubeconfig, or none that says how to reach a cluster."""

    exit_code = 78
