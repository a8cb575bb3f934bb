"""The rules of Kubernetes' restricted pod security, as its documentation lists them."""

from __future__ import annotations

from typing import Any

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def violations(spec: dict[str, Any]) -> list[str]:
    """What an API server that enforces the profile would say; empty for a pod that passes."""
    return [*_of_pod(spec), *(v for c in _containers(spec) for v in _of_container(c, spec.get("securityContext", {})))]


def _containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", ()), *spec["containers"], *spec.get("ephemeralContainers", ())]


def _of_pod(spec: dict[str, Any]) -> list[str]:
    found = [f"{field} is set" for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    for volume in spec.get("volumes", ()):
        found += [f"volume {volume['name']} is a {kind}" for kind in set(volume) - {"name"} - VOLUMES]
    context = spec.get("securityContext", {})
    if context.get("sysctls"):
        found.append("sysctls")
    if context.get("runAsUser") == 0:
        found.append("the pod runs as root")
    return found


def _of_container(container: dict[str, Any], pod: dict[str, Any]) -> list[str]:
    name, own = container["name"], container.get("securityContext", {})
    capabilities = own.get("capabilities", {})
    rules = {
        "is privileged": not own.get("privileged"),
        "may gain privileges": own.get("allowPrivilegeEscalation") is False,
        "keeps capabilities": "ALL" in capabilities.get("drop", ()),
        "adds capabilities": set(capabilities.get("add", ())) <= {"NET_BIND_SERVICE"},
        "may run as root": own.get("runAsNonRoot", pod.get("runAsNonRoot")) is True,
        "runs as root": own.get("runAsUser", pod.get("runAsUser")) != 0,
        "has no seccomp profile": own.get("seccompProfile", pod.get("seccompProfile", {})).get("type")
        in ("RuntimeDefault", "Localhost"),
        "uses host ports": not any(port.get("hostPort") for port in container.get("ports", ())),
        "unmasks /proc": own.get("procMount", "Default") == "Default",
    }
    return [f"{name} {violation}" for violation, kept in rules.items() if not kept]
