"""A server of the Open Inference Protocol v2: where it is, what it serves, and whether it is ready."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import quote, urlsplit

from ensemble_operator.cli.errors import DataError, ServerRefusedError, ServerUnreachableError
from ensemble_runtime.config import Datatype

_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Tensor:
    """An input or output as the server describes it, without the batch axis; -1 is variable."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    max_length: int | None = None
    """Upper bound of each variable dimension, if the server tells it."""


@dataclass(frozen=True)
class Server:
    """An ensemble that is being served."""

    base: str
    """http://host:port"""
    model: str
    inputs: tuple[Tensor, ...]
    max_rows: int
    """Most rows of one request."""
    predicted_rows_per_second: float | None
    """What its plan promised, if it tells."""

    @property
    def infer_path(self) -> str:
        """Where inference requests go."""
        return f"/v2/models/{quote(self.model)}/infer"


def find(url: str, model: str | None = None) -> Server:
    """Ask a server what it serves.

    Args:
        url: http://host:port, or with /v2/models/NAME behind it.
        model: The ensemble; by default the one in the URL, or else the only one there.

    Raises:
        DataError: The URL is none.
        ServerUnreachableError: Nobody answers there.
        ServerRefusedError: It does not serve this, or does not speak the protocol.
    """
    base, named = _split(url)
    model = model or named or _only_model(base)
    path = f"/v2/models/{quote(model)}"
    metadata, settings = get_json(base, path), get_json(base, f"{path}/config")
    try:
        facts = {name: value.get("string_value") for name, value in settings.get("parameters", {}).items()}
        inputs = tuple(_tensor(document, facts) for document in metadata["inputs"])
        promise = facts.get("predicted_rows_per_second")
        return Server(base, model, inputs, int(settings["max_batch_size"]), float(promise) if promise else None)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ServerRefusedError(f"{base}{path}: the answer is not a model's metadata ({error!r})") from error


def _tensor(document: Mapping[str, Any], facts: Mapping[str, str | None]) -> Tensor:
    longest = facts.get(f"max_length.{document['name']}")
    shape = tuple(document["shape"][1:])
    return Tensor(document["name"], Datatype(document["datatype"]), shape, int(longest) if longest else None)


def get_json(base: str, path: str) -> Any:
    """GET a JSON document.

    Raises:
        ServerUnreachableError: Nobody answers.
        ServerRefusedError: The status is not 200, or the body no JSON.
    """
    status, body = _get(base, path)
    if status != 200:
        raise ServerRefusedError(f"GET {base}{path}: {status} {reason(body)}")
    try:
        return json.loads(body)
    except ValueError as error:
        raise ServerRefusedError(f"GET {base}{path}: the answer is no JSON; is this an inference server?") from error


def is_ready(base: str) -> bool:
    """Whether a server answers there and says that it is ready."""
    try:
        return _get(base, "/v2/health/ready")[0] == 200
    except ServerUnreachableError:
        return False


def reason(body: bytes) -> str:
    """What an answer says of its failure."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, LookupError, TypeError):
        return body[:200].decode(errors="replace")


def _split(url: str) -> tuple[str, str | None]:
    parts = urlsplit(url)
    steps = [step for step in parts.path.split("/") if step]
    if parts.scheme not in ("http", "https") or not parts.netloc or not (not steps or steps[:2] == ["v2", "models"]):
        raise DataError(f"got '{url}', expected http://HOST:PORT or http://HOST:PORT/v2/models/NAME")
    return f"{parts.scheme}://{parts.netloc}", steps[2] if len(steps) > 2 else None


def _only_model(base: str) -> str:
    models = get_json(base, "/v2/models").get("models", [])
    if len(models) != 1:
        raise ServerRefusedError(f"{base} serves {', '.join(models) or 'nothing'}; name one: {base}/v2/models/NAME")
    return str(models[0])


def _get(base: str, path: str) -> tuple[int, bytes]:
    parts = urlsplit(base)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.netloc, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, HTTPException) as error:
        raise ServerUnreachableError(f"no server answers at {base}: {error}") from error
    finally:
        connection.close()
