"""What kind of archive a torch file is, told from the names inside."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ensemble_runtime.errors import ModelInvalidError


def names_in(path: Path) -> list[str]:
    """Names of the files in an archive.

    Raises:
        ModelInvalidError: no archive, or a damaged one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelInvalidError(f"no archive that torch can read ({error}): damaged, or of another kind") from error


def check_script(path: Path) -> None:
    """Tell a TorchScript archive from the other things that torch saves.

    It needs no deeper look: ``torch.jit.load`` never enters Python's unpickler. A reader of its own in C++ reads the
    archive's ``data.pkl`` and builds only tensors, plain values and the classes that the archive's TorchScript code
    defines. That code is compiled, never run by Python; like any graph it may call operators that read files.

    Raises:
        ModelInvalidError: no TorchScript archive; the message says what it is, where that can be told.
    """
    names = {name.partition("/")[2] for name in names_in(path)}
    if "constants.pkl" in names:
        return
    if "archive_format" in names:
        raise ModelInvalidError("this is a torch.export archive; set `model.format: TorchExport`")
    if "data.pkl" in names:
        raise ModelInvalidError(
            "this was pickled by torch.save; expected a file from torch.jit.save or torch.export.save"
        )
    raise ModelInvalidError("not a TorchScript archive; expected a file from torch.jit.save")
