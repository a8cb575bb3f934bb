"""A Kubernetes control plane on loopback: etcd, API server, controller manager, scheduler. No root is needed."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from beds.access import Access
from beds.client import ApiError, Client
from beds.processes import Program, free_ports

ADMIN = "admin"
CONTROLLERS = "system:kube-controller-manager"
SCHEDULER = "system:kube-scheduler"
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


@dataclass(frozen=True)
class Request:
    """What the audit log says of one request: enough to count them and to find those that were refused."""

    user: str
    verb: str
    resource: str
    namespace: str
    name: str
    code: int
    message: str


@dataclass(frozen=True)
class Options:
    """What beds change about a control plane.

    Attributes:
        address: The loopback address that its ports are on.
        port: Of the API server; None is any.
        services: The range of ClusterIPs.
        users: Further users with a static token, by name, with their groups.
        api_server: Further flags.
        controllers: Further flags of the controller manager.
    """

    address: str = "127.0.0.1"
    port: int | None = None
    services: str = "10.96.0.0/16"
    users: Mapping[str, tuple[str, ...]] | None = None
    api_server: tuple[str, ...] = ()
    controllers: tuple[str, ...] = ()


class ControlPlane(Access):
    """One control plane; a context manager that leaves nothing behind but its logs.

    Attributes:
        etcd, apiserver, controllers, scheduler: Its programs, for tests that end or hold them.
        url: The API server's address.
        ca: The certificate to trust.
        admin: A client that may do everything.
    """

    def __init__(self, binaries: Mapping[str, Path], folder: Path, options: Options | None = None) -> None:
        self._binaries = binaries
        self._options = options = options or Options()
        self._etcd_port, peers, free = free_ports(3, options.address)
        port = options.port or free
        self.url = f"https://{options.address}:{port}"
        self.ca = folder / "certificates" / "apiserver.crt"
        users = {ADMIN: ("system:masters",), CONTROLLERS: (), SCHEDULER: (), **(options.users or {})}
        self._tokens = {name: secrets.token_hex(16) for name in users}
        self._groups = users
        super().__init__(Client(self.url, self.ca, self._tokens[ADMIN]), binaries["kubectl"], folder)
        self.etcd = self._program("etcd", self._etcd_flags(peers))
        self.apiserver = self._program("kube-apiserver", self._api_flags(port))
        self.controllers = self._program("kube-controller-manager", self._controller_flags())
        self.scheduler = self._program("kube-scheduler", self._scheduler_flags())

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End everything at once; the logs stay."""
        for program in (self.scheduler, self.controllers, self.apiserver, self.etcd):
            program.kill()
        shutil.rmtree(self.folder / "etcd", ignore_errors=True)

    def wait_ready(self) -> None:
        """Wait until the API server answers that it is ready, e.g. after its restart."""
        self.apiserver.wait_until(self._api_ready, "ready")

    def restart_apiserver(self) -> None:
        """Kill the API server and wait for its successor on the same port."""
        self.apiserver.kill()
        self.apiserver.start()
        self.wait_ready()

    @contextmanager
    def without_apiserver(self) -> Iterator[None]:
        """Nobody listens on the API server's port meanwhile."""
        self.apiserver.kill()
        try:
            yield
        finally:
            self.apiserver.start()
            self.wait_ready()

    @contextmanager
    def held(self, program: Program) -> Iterator[None]:
        """A program is frozen meanwhile: `held(plane.etcd)` makes every request hang."""
        program.hold()
        try:
            yield
        finally:
            program.resume()

    def token(self, user: str = ADMIN) -> str:
        """The static token of a user known from the start."""
        return self._tokens[user]

    def kubeconfig(self, token: str | None = None, *, namespace: str = "default", url: str | None = None) -> Path:
        """A file for kubectl, clients and operators; the administrator's where no token is given."""
        token = token or self._tokens[ADMIN]
        cluster = {"server": url or self.url, "certificate-authority": str(self.ca)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "bed", "cluster": cluster}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": "user", "namespace": namespace}}],
            "current-context": "bed",
        }
        path = self.folder / f"kubeconfig-{secrets.token_hex(4)}"
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        return path

    def client(self, token: str) -> Client:
        """A client with somebody's token."""
        return Client(self.url, self.ca, token)

    def service_account(self, namespace: str, name: str) -> str:
        """A token of a ServiceAccount, which is made where it is missing; it has only the rights given to it."""
        manifest = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
        self.admin.apply(manifest)
        wanted = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        answer = self.admin.request("POST", f"{self.admin.path(manifest)}/token", wanted)
        token: str = answer["status"]["token"]
        return token

    def install_crds(self, folder: Path) -> None:
        """Apply every CRD of a folder and wait until the API server serves them."""
        self.kubectl("apply", "--server-side", "-f", str(folder))
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(folder))

    def requests(self, user: str | None = None, since: int = 0) -> list[Request]:
        """The requests that were answered, in order; of one user, and after a `mark`, if asked."""
        first: dict[str, dict[str, Any]] = {}
        with (self.folder / "audit.log").open("rb") as log:
            log.seek(since)
            for line in log:
                event = json.loads(line)
                first.setdefault(event["auditID"], event)  # a watch has one at its start and one at its end
        found = (_request(event) for event in first.values())
        return [request for request in found if user in (None, request.user)]

    def mark(self) -> int:
        """Now, as `requests` understands it."""
        return (self.folder / "audit.log").stat().st_size

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = (f'{token},{name},{name},"{",".join(self._groups[name])}"' for name, token in self._tokens.items())
        self._write("tokens.csv", "\n".join(lines))
        self._write("audit-policy.json", json.dumps(AUDIT_POLICY))
        key = subprocess.run(
            ["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout"],
            capture_output=True,
            text=True,
            check=True,
        )
        self._write("service-accounts.key", key.stdout)
        self.etcd.start()
        self.apiserver.start()
        self.wait_ready()
        for name, user in (("controllers", CONTROLLERS), ("scheduler", SCHEDULER)):
            self.kubeconfig(self._tokens[user]).rename(self.folder / f"kubeconfig-{name}")
        self.controllers.start()
        self.scheduler.start()
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self.controllers.wait_until(lambda: self.admin.exists(account), "the first ServiceAccount")

    def _api_ready(self) -> bool:
        try:
            return bool(self.admin.get("/readyz") == "ok")
        except (OSError, ApiError):
            return False

    def _write(self, name: str, content: str) -> None:
        path = self.folder / name
        path.write_text(content)
        path.chmod(0o600)

    def _program(self, name: str, flags: Sequence[str]) -> Program:
        return Program(name, [self._binaries[name], *flags], self.folder / f"{name}.log")

    def _etcd_flags(self, peers: int) -> list[str]:
        client = f"http://{self._options.address}:{self._etcd_port}"
        peer = f"http://{self._options.address}:{peers}"
        return [
            f"--data-dir={self.folder / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--log-level=warn",
        ]

    def _api_flags(self, port: int) -> list[str]:
        options, folder = self._options, self.folder
        return [
            f"--etcd-servers=http://{options.address}:{self._etcd_port}",
            f"--bind-address={options.address}",
            f"--advertise-address={options.address}",
            f"--secure-port={port}",
            f"--cert-dir={folder / 'certificates'}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-cluster-ip-range={options.services}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder / 'service-accounts.key'}",
            f"--service-account-signing-key-file={folder / 'service-accounts.key'}",
            # Its own address in an EndpointSlice may not be loopback; beds with real nodes bind elsewhere.
            *(["--endpoint-reconciler-type=none"] if options.address.startswith("127.") else []),
            "--allow-privileged",
            "--kubelet-preferred-address-types=InternalIP",
            f"--audit-policy-file={folder / 'audit-policy.json'}",
            f"--audit-log-path={folder / 'audit.log'}",
            "--audit-log-maxsize=10000",
            *options.api_server,
        ]

    def _controller_flags(self) -> list[str]:
        return [
            f"--kubeconfig={self.folder / 'kubeconfig-controllers'}",
            f"--service-account-private-key-file={self.folder / 'service-accounts.key'}",
            f"--root-ca-file={self.ca}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--secure-port=0",
            # For beds of a thousand nodes; the defaults are for machines that have other things to do.
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            *self._options.controllers,
        ]

    def _scheduler_flags(self) -> list[str]:
        return [
            f"--kubeconfig={self.folder / 'kubeconfig-scheduler'}",
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        ]


def _request(event: Mapping[str, Any]) -> Request:
    target = event.get("objectRef", {})
    resource = "/".join(filter(None, (target.get("resource"), target.get("subresource"))))
    return Request(
        user=event["user"].get("username", ""),
        verb=event["verb"],
        resource=resource or event["requestURI"],
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=event.get("responseStatus", {}).get("code", 0),
        message=event.get("responseStatus", {}).get("message", ""),
    )
