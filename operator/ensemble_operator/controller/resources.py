"""The kinds of object that the operator reads or writes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object, and where the API serves it."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As `apiVersion` spells it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", sub: str = "") -> str:
        """The URL path of a collection, an object or a subresource; no namespace: those of all."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [f"namespaces/{namespace}"] if namespace and self.namespaced else []
        return "/".join([root, *parts, self.plural, *filter(None, (name, sub))])


ENSEMBLES = Resource("ensembles.dev", "v1alpha1", "inferenceensembles", "InferenceEnsemble")
PROFILES = Resource("ensembles.dev", "v1alpha1", "modelprofiles", "ModelProfile")
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
PODS = Resource("", "v1", "pods", "Pod")
SLICES = Resource("resource.k8s.io", "v1", "resourceslices", "ResourceSlice", namespaced=False)
CLAIMS = Resource("resource.k8s.io", "v1", "resourceclaims", "ResourceClaim")
TEMPLATES = Resource("resource.k8s.io", "v1", "resourceclaimtemplates", "ResourceClaimTemplate")
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
SERVICES = Resource("", "v1", "services", "Service")
BUDGETS = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
SECRETS = Resource("", "v1", "secrets", "Secret")
REVISIONS = Resource("apps", "v1", "controllerrevisions", "ControllerRevision")
EVENTS = Resource("", "v1", "events", "Event")

CHILDREN = (PODS, CONFIG_MAPS, SERVICES, BUDGETS, POLICIES, SECRETS, CLAIMS, TEMPLATES)
"""What an ensemble may own."""

BY_KIND = {resource.kind: resource for resource in (ENSEMBLES, PROFILES, NODES, SLICES, EVENTS, REVISIONS, *CHILDREN)}
