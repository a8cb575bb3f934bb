"""Loads torch.export archives (``.pt2``), after making sure that loading runs no code from the file.

``torch.export.load`` has several ways into Python: example inputs fall back to a full unpickling, tensor subclasses
and custom objects are pickled, compiled kernels are native libraries, and sympy passes shape expressions to ``eval``.
A plain archive (JSON graph, raw weights, example inputs that the restricted unpickler takes) needs none of them, and
only that passes here. The records are read through torch's own reader, so that what is checked is what is loaded.

The format is no sandbox: a graph may call any operator that torch has registered, some of which read files.

Importing this takes seconds (it brings torch's compiler with it), so only members of this format do.
"""

from __future__ import annotations

import ast
import builtins
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export.passes import move_to_device_pass
from torch.export.pt2_archive import PT2ArchiveReader

from ensemble_runtime.errors import ModelInvalidError
from ensemble_runtime.members.checks import lacks_memory
from ensemble_runtime.members.torch_archive import names_in
from ensemble_runtime.members.torch_graph import flat_module

_LEAVE = "if you trust the file, set `model.allowPickle: true`"
_OPERATOR = re.compile(r"torch\.ops(\.\w+){2,3}|torch\.sym_\w+|torch\._sym_sqrt|_operator\.[a-z]\w*|math\.[a-z]\w*")
_IDENTIFIER = re.compile(r"\w*")
_IDENTIFIER_KEYS = frozenset({"name", "as_name", "forward_arg_names"})
_ARITHMETIC = (
    *(ast.Expression, ast.Constant, ast.Load, ast.keyword, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)


def load_export(
    path: Path, target: torch.device, precision: torch.dtype, allow_pickle: bool
) -> tuple[torch.fx.GraphModule, Sequence[str] | None]:
    """Load an exported program onto a device; see `torch_graph.flat_module` for what it returns.

    Raises:
        ModelInvalidError: no torch.export archive, or one that needs leave; the message names the part.
        Exception: whatever torch raises on damaged archives.
    """
    check_export(path, allow_pickle)
    with path.open("rb") as file:  # by name torch would insist on the suffix .pt2, which files in the cache lack
        program = torch.export.load(file)
    return flat_module(move_to_device_pass(program, target), precision)


def check_export(path: Path, allow_pickle: bool) -> None:
    """Make sure that ``torch.export.load`` will run no code from the file.

    Args:
        path: The file.
        allow_pickle: Accept archives that can.

    Raises:
        ModelInvalidError: no torch.export archive, or one that needs leave; the message names the part.
    """
    names = names_in(path)
    if "serialized_exported_program.json" in names:
        raise ModelInvalidError("saved by torch 2.7 or older; export it again with the torch that serves it")
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:
        raise ModelInvalidError("this is a TorchScript archive; set `model.format: TorchScript`")
    if "archive_format" not in inner:
        raise ModelInvalidError("not a torch.export archive; expected a file from torch.export.save")
    if allow_pickle:
        return
    # torch.export.load tries its older layout, which this check does not read, if the newer one fails.
    if "version" in names:
        raise ModelInvalidError(f"mixes two archive layouts; {_LEAVE}")
    with path.open("rb") as file, PT2ArchiveReader(file) as archive:
        for name in archive.get_file_names():
            _check_record(name, archive)


def _check_record(name: str, archive: Any) -> None:
    """One record of the archive; kinds that are not known are not loaded, except those refused here."""
    if name.startswith("data/aotinductor/"):
        raise ModelInvalidError(f"holds native code ({name}); {_LEAVE}")
    if name.endswith(".pt"):
        try:
            torch.load(io.BytesIO(archive.read_bytes(name)), weights_only=True)
        except Exception as error:
            if lacks_memory(error):
                raise
            raise ModelInvalidError(f"{name} cannot be read without unpickling objects; {_LEAVE}") from error
    elif name.endswith("_config.json"):
        for tensor, payload in json.loads(archive.read_bytes(name))["config"].items():
            kind = str(payload["path_name"]).rpartition("_")[0]
            if payload["use_pickle"] or kind not in ("weight", "tensor"):
                raise ModelInvalidError(f"'{tensor}' is a pickled object; {_LEAVE}")
    elif name.startswith("models/"):
        for key, text in _strings(json.loads(archive.read_bytes(name))):
            _check_string(key, text)


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All strings of a JSON document, each with the key that it (or its list) stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _strings(item, name)


def _check_string(key: str, text: str) -> None:
    """The strings that torch evaluates, calls, or writes into generated Python; the others stay data."""
    if key == "expr_str" and not _harmless(text):
        raise ModelInvalidError(f"the shape expression {text[:80]!r} is more than arithmetic; {_LEAVE}")
    if key == "target" and not _OPERATOR.fullmatch(text):
        raise ModelInvalidError(f"calls {text[:80]!r}, which is no registered operator; {_LEAVE}")
    if key in _IDENTIFIER_KEYS and not _IDENTIFIER.fullmatch(text):
        raise ModelInvalidError(f"{text[:80]!r} is no name of a value; {_LEAVE}")


def _harmless(expression: str) -> bool:
    """Whether an expression is arithmetic alone: sympy's functions by name, on numbers, symbols and each other."""
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name):
                if name.startswith("_") or name in vars(builtins):
                    return False
            case ast.Call(func=function):
                if not (isinstance(function, ast.Name) and function.id[0].isupper()):
                    return False
            case ast.Constant(value=str(text)):
                if not _IDENTIFIER.fullmatch(text) or "__" in text:
                    return False
            case _ if not isinstance(node, _ARITHMETIC):
                return False
    return True
