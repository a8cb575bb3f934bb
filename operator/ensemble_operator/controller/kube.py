"""The only module that talks to the Kubernetes API: plain dicts in and out, retries within bounds."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config

from ensemble_operator.controller.resources import BY_KIND, Resource
from ensemble_runtime.errors import EnsembleError

MANAGER = "ensemble-operator"

_IN_CLUSTER = "KUBERNETES_SERVICE_HOST"
_PAGE = 500
_REQUEST_SECONDS = 20.0
_ATTEMPTS = 6
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_LONGEST_ASKED = 30.0
_CONFLICT, _GONE, _NOT_FOUND, _TOO_MANY = 409, 410, 404, 429

_log = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Body = dict[str, Any]


class KubeError(EnsembleError):
    """The API server refused a request, or was not to be reached for long enough."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status; 0 where there was no answer."""

    @property
    def passing(self) -> bool:
        """Whether the server is away or busy, rather than of another opinion."""
        return self.status in (0, _TOO_MANY) or self.status >= 500


@dataclass(frozen=True, slots=True)
class Listing:
    """All objects of a kind at one moment."""

    items: tuple[Body, ...]
    version: int
    """Resource version of the moment."""


class Kube:
    """A connection to the API server. Every request is bounded in time, and repeated after a while if that may help."""

    def __init__(self, client: ApiClient, observe: Callable[[str, str, int], None] = lambda *_: None) -> None:
        """Use a client; `observe` is told verb, kind and HTTP status (0: none) of every request."""
        self._client = client
        self._observe = observe

    async def list(self, resource: Resource, *, namespace: str = "", selector: str = "") -> Listing:
        """All objects of a kind, in pages.

        Args:
            resource: The kind.
            namespace: Where; empty: in all.
            selector: Of their labels.

        Raises:
            KubeError: It cannot be done.
        """
        while True:
            try:
                return await self._pages(resource, namespace, selector)
            except KubeError as error:
                if error.status != _GONE:
                    raise
                _log.info("a listing took too long and starts anew", extra={"kind": resource.kind})

    async def _pages(self, resource: Resource, namespace: str, selector: str) -> Listing:
        items: list[Body] = []
        query = {"limit": str(_PAGE)} | ({"labelSelector": selector} if selector else {})
        while True:
            page = await self._request("list", "GET", resource, resource.path(namespace), query)
            items += page.get("items") or ()
            more = page["metadata"].get("continue")
            if not more:
                return Listing(tuple(items), int(page["metadata"]["resourceVersion"]))
            query["continue"] = more

    async def named(self, resource: Resource, namespace: str, name: str) -> Body | None:
        """The object of a name, or None where there is none; it takes no other right than to list.

        Raises:
            KubeError: It cannot be done.
        """
        query = {"fieldSelector": f"metadata.name={name}"}
        page = await self._request("list", "GET", resource, resource.path(namespace), query)
        items = page.get("items") or ()
        return items[0] if items else None

    async def served(self, resource: Resource) -> bool:
        """Whether this API server knows a kind at this version."""
        prefix = resource.path().rsplit("/", 1)[0]
        try:
            found = await self._request("discover", "GET", resource, prefix)
        except KubeError as error:
            if error.status == _NOT_FOUND:
                return False
            raise
        return any(entry["name"] == resource.plural for entry in found.get("resources", ()))

    async def schemas(self, resource: Resource) -> dict[str, Body]:
        """The OpenAPI schemas of a kind's group and version, by kind; none until the API server publishes them.

        Raises:
            KubeError: It does not say.
        """
        try:
            prefix = resource.path().rsplit("/", 1)[0]
            document = await self._request("discover", "GET", resource, f"/openapi/v3{prefix}")
        except KubeError as error:
            if error.status == _NOT_FOUND:
                return {}
            raise
        found = document.get("components", {}).get("schemas", {})
        return {name.rsplit(".", 1)[-1]: schema for name, schema in found.items()}

    async def get(self, resource: Resource, namespace: str, name: str) -> Body | None:
        """One object, or None where there is none."""
        return await self._unless_gone("get", "GET", resource, resource.path(namespace, name))

    async def apply(self, body: Body) -> Body:
        """Create an object, or make its fields what they are here (server-side apply); gives the object as it is then.

        Raises:
            KubeError: It is refused.
        """
        resource, meta = BY_KIND[body["kind"]], body["metadata"]
        path = resource.path(meta.get("namespace", ""), meta["name"])
        return await self._request("apply", "PATCH", resource, path, _APPLY, body)

    async def create(self, body: Body) -> Body | None:
        """Create an object; None where one of its name exists already."""
        resource, meta = BY_KIND[body["kind"]], body["metadata"]
        path = resource.path(meta.get("namespace", ""))
        try:
            return await self._request("create", "POST", resource, path, {"fieldManager": MANAGER}, body)
        except KubeError as error:
            if error.status == _CONFLICT:
                return None
            raise

    async def apply_status(self, body: Body) -> Body | None:
        """Make the status of an object what it is here; None where the object is gone, or another has its name now."""
        resource, meta = BY_KIND[body["kind"]], body["metadata"]
        path = resource.path(meta["namespace"], meta["name"], "status")
        try:
            return await self._unless_gone("status", "PATCH", resource, path, _APPLY, body)
        except KubeError as error:
            if error.status == _CONFLICT:  # the uid is another's
                return None
            raise

    async def delete(
        self, resource: Resource, namespace: str, name: str, uid: str, *, at_once: bool = False
    ) -> Body | None:
        """Delete exactly this object; one of the same name that came after it stays.

        Args:
            resource: Its kind.
            namespace: Where.
            name: Its name.
            uid: Its uid.
            at_once: Whether nobody is given time to end it, nor has to confirm that it ended.

        Returns:
            The object where it takes time to end; None, or a Status, where it is gone.
        """
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
            **({"gracePeriodSeconds": 0} if at_once else {}),
        }
        try:
            return await self._unless_gone("delete", "DELETE", resource, resource.path(namespace, name), {}, options)
        except KubeError as error:
            if error.status == _CONFLICT:
                return None
            raise

    async def _unless_gone(
        self,
        verb: str,
        method: str,
        resource: Resource,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
    ) -> Body | None:
        try:
            return await self._request(verb, method, resource, path, query, body)
        except KubeError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    async def _request(
        self,
        verb: str,
        method: str,
        resource: Resource,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
    ) -> Body:
        """One request, repeated with growing, jittered pauses while the server is busy or away."""
        for attempt in range(1, _ATTEMPTS + 1):
            status, answer, asked = await self._attempt(method, path, query or {}, body)
            self._observe(verb, resource.kind, status)
            if 200 <= status < 300:
                return answer
            if attempt == _ATTEMPTS or not _worthwhile(status, method, body):
                break
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1.0)
            await asyncio.sleep(max(pause, asked))
        raise KubeError(f"{verb} {resource.kind} {path}: {answer.get('message', 'no answer')}", status)

    async def _attempt(
        self, method: str, path: str, query: Mapping[str, str], body: Body | None
    ) -> tuple[int, Body, float]:
        """HTTP status (0: no answer), the answer, and the seconds that the server asks to wait."""
        kind = "application/apply-patch+yaml" if method == "PATCH" else "application/json"
        arguments = await self._client.param_serialize(
            method,
            path + (f"?{urlencode(query)}" if query else ""),
            header_params={"Accept": "application/json", "Content-Type": kind},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = await self._client.call_api(*arguments, _request_timeout=_REQUEST_SECONDS)
            text = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return 0, {"message": f"no answer from the API server: {error or type(error).__name__}"}, 0.0
        try:
            return response.status, json.loads(text), _seconds(response.headers.get("Retry-After"))
        except ValueError:
            return response.status, {"message": text[:200].decode(errors="replace")}, 0.0


_APPLY = {"fieldManager": MANAGER, "force": "true"}


async def answered(ask: Callable[[], Awaitable[Answer]], seconds: float = 5.0) -> Answer:
    """What the server answers as soon as it does, however long it is away or busy.

    Args:
        ask: Asks it.
        seconds: Between one question, with all its repetitions, and the next.

    Raises:
        KubeError: It refuses.
    """
    while True:
        try:
            return await ask()
        except KubeError as error:
            if not error.passing:
                raise
            _log.warning("waits for the API server: %s", error)
        await asyncio.sleep(seconds)


def _worthwhile(status: int, method: str, body: Body | None) -> bool:
    """Whether the same request may succeed later. Two patches may meet by chance; a name or a uid stays another's."""
    by_chance = method == "PATCH" and "uid" not in (body or {}).get("metadata", {})
    return status in (0, _TOO_MANY) or status >= 500 or (status == _CONFLICT and by_chance)


def _seconds(text: str | None) -> float:
    return min(_LONGEST_ASKED, float(text)) if text and text.isdigit() else 0.0


@asynccontextmanager
async def connected(observe: Callable[[str, str, int], None] = lambda *_: None) -> AsyncIterator[Kube]:
    """A connection by the pod's own service account, or by KUBECONFIG where that is set."""
    configuration = Configuration()
    if "KUBECONFIG" not in os.environ and _IN_CLUSTER in os.environ:
        load_incluster_config(client_configuration=configuration)
    else:
        await load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=configuration, persist_config=False)
    configuration.connection_pool_maxsize = 32
    async with ApiClient(configuration) as client:
        client.user_agent = MANAGER
        yield Kube(client, observe)
