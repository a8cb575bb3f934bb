"""The custom metrics API of a cluster, in place of an adapter before Prometheus: what the pods' /metrics say right now.

The API server asks it as it asks any aggregated API: by an APIService, whose Service leads to a process outside.
"""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from beds.access import Access
from beds.client import Manifest
from beds.processes import wait_for
from beds.scraping import samples

GROUP, VERSION = "custom.metrics.k8s.io", "v1beta2"
NAME, NAMESPACE = "custom-metrics", "kube-system"
_PODS = re.compile(rf"/apis/{GROUP}/{VERSION}/namespaces/([^/]+)/pods/\*/([^/]+)")


class CustomMetrics:
    """A context manager; every metric of a namespace's pods can be had."""

    def __init__(self, plane: Access, address: str) -> None:
        """Nothing listens yet; the API server's way leads to a free port of this address."""
        self._plane = plane
        self._address = address

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer((self._address, 0), self._handler())
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*_certificate(self._plane.folder / NAME))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, name=NAME, daemon=True).start()
        for manifest in _registration(self._address, self._server.server_port):
            self._plane.admin.apply(manifest)
        wait_for(self._available, "the custom metrics API")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for manifest in _registration(self._address, self._server.server_port):
            self._plane.admin.delete(self._plane.admin.path(manifest))
        self._server.shutdown()
        self._server.server_close()

    def _available(self) -> bool:
        path = f"/apis/apiregistration.k8s.io/v1/apiservices/{VERSION}.{GROUP}"
        conditions = self._plane.admin.get(path).get("status", {}).get("conditions", ())
        return any(c["type"] == "Available" and c["status"] == "True" for c in conditions)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        metrics = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                where = urlsplit(self.path)
                found = metrics._found(unquote(where.path), parse_qs(where.query))
                content = json.dumps(found or {"kind": "Status", "apiVersion": "v1", "code": 404}).encode()
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        return Handler

    def _found(self, path: str, query: dict[str, list[str]]) -> dict[str, Any] | None:
        if path == f"/apis/{GROUP}/{VERSION}":
            return {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": f"{GROUP}/{VERSION}",
                "resources": [],
            }
        if not (asked := _PODS.fullmatch(path)):
            return None
        namespace, metric = asked.groups()
        selector = query.get("labelSelector", [""])[0]
        pods = self._plane.admin.items(f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector)
        values = [value for pod in pods for value in _values(pod, metric)]
        return {"kind": "MetricValueList", "apiVersion": f"{GROUP}/{VERSION}", "metadata": {}, "items": values}


def _values(pod: Manifest, metric: str) -> list[dict[str, Any]]:
    """The pod's value, where it answers."""
    try:
        found = samples(pod, metric)
    except (OSError, KeyError):  # it has no address yet, or does not listen
        return []
    meta = pod["metadata"]
    described = {"kind": "Pod", "apiVersion": "v1", "namespace": meta["namespace"], "name": meta["name"]}
    return [
        {
            "describedObject": described,
            "metric": {"name": metric},
            "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "value": f"{sum(value for _, value in found) * 1000:.0f}m",
        }
    ]


def _certificate(folder: Path) -> tuple[Path, Path]:
    """Signed by itself: nobody checks it, as nothing but the bed is in the network."""
    folder.mkdir(exist_ok=True)
    certificate, key = folder / "tls.crt", folder / "tls.key"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [*made, "-subj", f"/CN={NAME}", "-keyout", str(key), "-out", str(certificate)], capture_output=True, check=True
    )
    return certificate, key


def _registration(address: str, port: int) -> list[Manifest]:
    """A Service without pods that leads here, and the APIService that names it."""
    meta = {"name": NAME, "namespace": NAMESPACE}
    named = meta | {"labels": {"kubernetes.io/service-name": NAME}}
    service = {"name": NAME, "namespace": NAMESPACE, "port": 443}
    api = {
        "group": GROUP,
        "version": VERSION,
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
        "insecureSkipTLSVerify": True,
        "service": service,
    }
    ports = [{"name": "https", "port": 443, "targetPort": port}]
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": ports}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": named,
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address]}],
            "ports": [{"name": "https", "port": port}],
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{VERSION}.{GROUP}"},
            "spec": api,
        },
    ]
