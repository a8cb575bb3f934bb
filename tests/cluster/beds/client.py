"""The Kubernetes API as tests talk to it: plain requests, plain dictionaries."""

from __future__ import annotations

import http.client
import json
import ssl
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

Manifest = dict[str, Any]
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
TIMEOUT_SECONDS = 30.0


class ApiError(Exception):
    """An answer that is not 2xx."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message


class Client:
    """One user of one API server; a connection a request, so any thread may use it."""

    def __init__(self, url: str, ca: Path, token: str) -> None:
        self.url = url
        self.ca = ca
        self.token = token
        self._paths: dict[tuple[str, str], tuple[str, bool]] = {}

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))

    def request(
        self, method: str, path: str, body: Any = None, *, media: str = "application/json", **query: str | int | bool
    ) -> Any:
        """One request; the answer's JSON, or its text where it is none (`/readyz`, logs).

        Raises:
            ApiError: The server says no.
            OSError: Nobody answers.
        """
        where = urlsplit(self.url)
        connection = self._connection(where.scheme, where.netloc)
        headers = {"Accept": "application/json", "Content-Type": media}
        if self.token:  # else `kubectl proxy` signs in, unless a request seems to do so itself
            headers["Authorization"] = f"Bearer {self.token}"
        terms = urlencode(
            {key: str(value).lower() if isinstance(value, bool) else value for key, value in query.items()}
        )
        try:
            connection.request(method, f"{path}?{terms}", None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read().decode(errors="replace")
        except http.client.HTTPException as error:
            raise OSError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        is_json = "json" in (answer.getheader("Content-Type") or "")
        result = json.loads(content) if is_json and content else content
        if answer.status >= 300:
            told = result if isinstance(result, dict) else {}
            raise ApiError(answer.status, told.get("reason", answer.reason), told.get("message", content))
        return result

    def _connection(self, scheme: str, netloc: str) -> http.client.HTTPConnection:
        if scheme == "http":  # `kubectl proxy`, which knows who the user is
            return http.client.HTTPConnection(netloc, timeout=TIMEOUT_SECONDS)
        return http.client.HTTPSConnection(netloc, context=self._tls, timeout=TIMEOUT_SECONDS)

    def get(self, path: str, **query: str | int | bool) -> Any:
        """An object, or a list with its envelope."""
        return self.request("GET", path, **query)

    def items(self, path: str, **query: str | int | bool) -> list[Manifest]:
        """The objects of a collection."""
        found: list[Manifest] = self.get(path, **query)["items"]
        return found

    def exists(self, path: str) -> bool:
        """Whether an object is there."""
        try:
            self.get(path)
        except ApiError as error:
            if error.code != 404:
                raise
            return False
        return True

    def create(self, manifest: Manifest, **query: str | int | bool) -> Manifest:
        """A new object."""
        created: Manifest = self.request("POST", self._collection(manifest), manifest, **query)
        return created

    def apply(self, manifest: Manifest, *, manager: str = "tests", **query: str | int | bool) -> Manifest:
        """Server-side apply."""
        applied: Manifest = self.request(
            "PATCH", self.path(manifest), manifest, media=APPLY, fieldManager=manager, force=True, **query
        )
        return applied

    def merge(self, path: str, patch: Manifest) -> Manifest:
        """A merge patch; `PATH/status` for what only the status may say."""
        patched: Manifest = self.request("PATCH", path, patch, media=MERGE)
        return patched

    def delete(self, path: str, **query: str | int | bool) -> None:
        """Ask for an object's end; fine where it is gone."""
        try:
            self.request("DELETE", path, **query)
        except ApiError as error:
            if error.code != 404:
                raise

    def path(self, manifest: Manifest) -> str:
        """Where an object lives."""
        return f"{self._collection(manifest)}/{quote(manifest['metadata']['name'])}"

    def _collection(self, manifest: Manifest) -> str:
        version, kind = manifest["apiVersion"], manifest["kind"]
        root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
        if (version, kind) not in self._paths:
            for resource in self.get(root)["resources"]:
                if "/" not in resource["name"]:
                    self._paths[version, resource["kind"]] = (resource["name"], resource["namespaced"])
        plural, namespaced = self._paths[version, kind]
        if not namespaced:
            return f"{root}/{plural}"
        return f"{root}/namespaces/{manifest['metadata'].get('namespace', 'default')}/{plural}"
