"""Reads a cluster's API, with the rights of whoever asks: the only module of the command line that does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from ensemble_operator.cli.errors import ClusterConfigError, ServerRefusedError, ServerUnreachableError

Body = Mapping[str, Any]

_ENSEMBLES = "/apis/ensembles.dev/v1alpha1"
_PAGE = 500
_SECONDS = 20.0


@dataclass(frozen=True)
class Cluster:
    """A cluster, and the namespace that is meant where none is named."""

    client: ApiClient
    namespace: str

    def ensembles(self, name: str | None = None) -> list[Body]:
        """The ensembles of the namespace, or the one of this name.

        Raises:
            EnsembleError: There is none of that name, the cluster cannot be reached, or it refuses.
        """
        path = f"{_ENSEMBLES}/namespaces/{self.namespace}/inferenceensembles"
        return list(self._items(path)) if name is None else [self._get(f"{path}/{name}")]

    def profiles(self) -> list[Body]:
        """The ModelProfiles of the namespace."""
        return list(self._items(f"{_ENSEMBLES}/namespaces/{self.namespace}/modelprofiles"))

    def nodes(self) -> list[Body]:
        """All nodes."""
        return list(self._items("/api/v1/nodes"))

    def pods(self, labels: str = "", *, everywhere: bool = False) -> list[Body]:
        """Pods of the namespace, or of all, that bear these labels."""
        scope = "" if everywhere else f"/namespaces/{self.namespace}"
        return list(self._items(f"/api/v1{scope}/pods", labels))

    def slices(self) -> list[Body]:
        """All ResourceSlices; none where the cluster does not know of them."""
        return list(self._items("/apis/resource.k8s.io/v1/resourceslices", optional=True))

    def claims(self) -> list[Body]:
        """All ResourceClaims; none where the cluster does not know of them."""
        return list(self._items("/apis/resource.k8s.io/v1/resourceclaims", optional=True))

    def _items(self, path: str, labels: str = "", *, optional: bool = False) -> Iterator[Body]:
        query = {"limit": str(_PAGE)} | ({"labelSelector": labels} if labels else {})
        while True:
            page = self._get(path, query, optional=optional)
            yield from page.get("items") or ()
            more = (page.get("metadata") or {}).get("continue")
            if not more:
                return
            query["continue"] = more

    def _get(self, path: str, query: Mapping[str, str] | None = None, *, optional: bool = False) -> Any:
        request = self.client.param_serialize(
            "GET",
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        try:
            response = self.client.call_api(*request, _request_timeout=_SECONDS)
            content = response.read()
        except (HTTPError, ApiException, OSError) as error:
            where = self.client.configuration.host
            raise ServerUnreachableError(f"{where}: {getattr(error, 'reason', None) or error}") from error
        if response.status == 404 and optional:
            return {}
        if response.status != 200:
            raise ServerRefusedError(f"the cluster says {response.status}: {_message(content)}")
        return json.loads(content)


def connect(context: str | None, namespace: str | None) -> Cluster:
    """The cluster of a kubeconfig's context; inside a pod, the pod's own.

    Args:
        context: Default: the current one.
        namespace: Default: that of the context.

    Raises:
        ClusterConfigError: There is no such context, or no kubeconfig.
    """
    configuration = Configuration()
    try:
        config.load_kube_config(context=context, client_configuration=configuration, persist_config=False)
        contexts, current = config.list_kube_config_contexts()
    except config.ConfigException as error:
        if context is not None:
            raise ClusterConfigError(f"context '{context}': {error}") from error
        return Cluster(_inside(configuration, error), namespace or "default")
    chosen = next((c for c in contexts if c["name"] == context), current)
    configuration.retries = False
    return Cluster(ApiClient(configuration), namespace or chosen["context"].get("namespace") or "default")


def _inside(configuration: Configuration, reason: Exception) -> ApiClient:
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        raise ClusterConfigError(f"no cluster to ask: {reason}; set KUBECONFIG, or give --context") from reason
    return ApiClient(configuration)


def _message(content: bytes) -> str:
    try:
        return str(json.loads(content)["message"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode(errors="replace")
