"""What can go wrong, as a small hierarchy; every class carries the exit code that the process ends with.

Exit codes follow sysexits.h where it has a fitting meaning, so that scripts and probes can tell the causes apart.
"""


class EnsembleError(Exception):
    """Any failure that is reported to a person as one line, without a traceback."""

    exit_code = 1


class ManifestError(EnsembleError):
    """The manifest or the runtime configuration is wrong; the message names the field."""

    exit_code = 65


class ModelUnavailableError(EnsembleError):
    """A model cannot be fetched: missing file, refused or failed download."""

    exit_code = 66


class ModelNotCachedError(ModelUnavailableError):
    """The file of a pinned model is not in the cache, and cannot be fetched either."""


class ModelEvictedError(EnsembleError):
    """A model that was fetched before is gone from the cache; whoever fetched it has to do so again."""

    exit_code = 75


class DigestMismatchError(EnsembleError):
    """A model's bytes are not those that the manifest pinned by sha256."""

    exit_code = 67


class ModelInvalidError(EnsembleError):
    """A model cannot be parsed, needs pickle without leave, or does not do what the manifest says."""

    exit_code = 68


class DeviceUnavailableError(EnsembleError):
    """A device that the plan names is not on this machine."""

    exit_code = 69


class OutOfMemoryError(EnsembleError):
    """The members do not fit into the devices, or the arena does not fit into shared memory."""

    exit_code = 70


class SharedMemoryError(EnsembleError):
    """The shared memory for the arena cannot be had; the message names the size that is needed."""

    exit_code = 71


class PortTakenError(EnsembleError):
    """The address to listen on is in use."""

    exit_code = 72


class StartupError(EnsembleError):
    """A process of the runtime ended before it was ready."""

    exit_code = 73
