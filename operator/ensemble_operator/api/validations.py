"""What the API server itself refuses beyond types and bounds: the models' validators once more, in CEL.

Where the two could differ the models decide, as the operator reads every manifest with them; here are those of their
rules that a user should hear of from `kubectl apply` already, and what only the API server can see: the former state.
Unique names are by list type, in the schema.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from ensemble_operator.api.ensemble import DeviceChoice, EnsembleSpec, MemberSpec
from ensemble_operator.api.objective import Objective
from ensemble_operator.api.placement import Toleration
from ensemble_operator.api.profile import ModelProfileSpec
from ensemble_operator.api.schema import Validation
from ensemble_runtime.config import Combination, ModelSource, Partition, Serving, TensorSpec

_EFFECTIVE_KINDS = (
    "(has(self.devices.kinds) ? self.devices.kinds : "
    "self.devices.simulated.size() > 0 ? ['Simulated'] : ['GPU', 'CPU'])"
)
_LAST = "(o.shape.size() == 0 ? 1 : o.shape[o.shape.size() - 1])"
"""The last dimension of an output; of a single number it is 1."""


def _kept(tensors: str) -> Validation:
    """Clients were written against names, types and shapes; `maxLength` is a limit, and may be moved."""
    return Validation(
        f"self.{tensors}.map(t, t.name) == oldSelf.{tensors}.map(t, t.name) && self.{tensors}.all(t, "
        f"oldSelf.{tensors}.exists(o, o.name == t.name && o.datatype == t.datatype && o.shape == t.shape))",
        "names, datatypes and shapes cannot change: clients of the endpoint would break; make another ensemble",
        f".{tensors}",
    )


def _needs(goal: str, figure: str) -> Validation:
    return Validation(
        f"!has(self.goal) || self.goal != '{goal}' || has(self.{figure})",  # an empty default is checked as it is
        f"missing; goal {goal} needs it",
        f".{figure}",
        "FieldValueRequired",
    )


def _idle(goals: str, figure: str) -> Validation:
    return Validation(
        f"!has(self.{figure}) || !(self.goal in [{goals}])",
        "this goal makes no use of it; remove it, or choose another goal",
        f".{figure}",
    )


_RULES: Mapping[type[BaseModel], tuple[Validation, ...]] = {
    EnsembleSpec: (
        Validation(
            "self.members.exists(m, !m.shadow)",
            "every member is a shadow; expected at least one that is combined",
            ".members",
        ),
        Validation(
            "!(self.combination.rule in ['WeightedMean', 'SoftVote', 'HardVote']) || "
            "self.members.exists(m, !m.shadow && m.weight > 0.0) || self.members.all(m, m.shadow)",
            "all weights are 0; the rule needs a positive one on a member that is combined",
            ".members",
        ),
        Validation(
            "self.combination.rule != 'Stacking' || self.outputs.size() == 1",
            "Stacking gives one output, expected no more",
            ".combination.rule",
        ),
        Validation(
            f"self.combination.rule != 'Stacking' || self.outputs.all(o, {_LAST} != -1)",
            "rule Stacking puts the members' values side by side along the last dimension; expected one that is not "
            "variable",
            ".outputs",
        ),
        Validation(
            "self.combination.predictions == 'Values' || (self.combination.predictions == 'Probabilities' && "
            "self.combination.rule in ['Mean', 'WeightedMean', 'SoftVote', 'Stacking']) || "
            f"self.outputs.all(o, {_LAST} != 1)",
            "the rule works along the classes; expected a last dimension of 2 or more. "
            "For plain numbers set combination.predictions: Values",
            ".outputs",
        ),
        Validation(
            "!has(self.serving.quorum) || self.serving.quorum.minMembers <= self.members.filter(m, !m.shadow).size()",
            "expected at most as many as there are members that are combined",
            ".serving.quorum.minMembers",
        ),
        Validation(
            "!has(self.serving.quorum) || self.combination.rule != 'Stacking'",
            "rule Stacking needs the values of every member; remove the quorum, or choose another rule",
            ".serving.quorum",
        ),
        Validation(
            f"self.members.all(m, m.deviceKinds.exists(k, k in {_EFFECTIVE_KINDS}))",
            "a member's deviceKinds and spec.devices have no kind in common; that member could run nowhere",
            ".members",
        ),
        Validation(
            "self.inputs.all(t, t.shape.all(d, d > 0)) || self.members.all(m, !has(m.partition))",
            "`partition`: no member can be split whose inputs have variable dimensions; remove it, or fix the shapes",
            ".members",
        ),
        _kept("inputs"),
        _kept("outputs"),
    ),
    MemberSpec: (
        Validation(
            "!has(self.partition) || self.model.format == 'ONNX'", "only ONNX models can be split", ".partition"
        ),
    ),
    ModelSource: (
        Validation(
            "!self.uri.startsWith('file://.')",
            "file://. is relative to a manifest on a disk; a cluster needs file:///path (in the image), "
            "pvc://CLAIM/path, https://... or s3://...",
            ".uri",
        ),
        Validation(
            "!self.uri.startsWith('pvc://') || self.uri.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[^/]')",
            "expected pvc://CLAIM/path",
            ".uri",
        ),
        Validation(
            "!has(self.secretName) || !(self.uri.startsWith('pvc://') || self.uri.startsWith('file://'))",
            "only files that are fetched need credentials; this one is mounted",
            ".secretName",
        ),
    ),
    Combination: (
        Validation(
            "!has(self.rule) || self.rule != 'Stacking' || has(self.model)",
            "missing; rule Stacking needs it",
            ".model",
            "FieldValueRequired",
        ),
        Validation("self.rule == 'Stacking' || !has(self.model)", "only rule Stacking takes a model", ".model"),
        Validation(
            "!has(self.model) || !has(self.model.secretName) || has(self.model.sha256)",
            "missing; what is fetched with a Secret is found again by its digest",
            ".model.sha256",
            "FieldValueRequired",
        ),
    ),
    Partition: (
        Validation(
            "self.objective != 'Memory' || has(self.latencyMs)",
            "missing; objective Memory needs it",
            ".latencyMs",
            "FieldValueRequired",
        ),
    ),
    Serving: (
        Validation(
            "!has(self.quorum) || self.quorum.deadlineMs < self.timeoutMs",
            "a quorum's deadlineMs is expected to be less than timeoutMs",
            ".quorum.deadlineMs",
        ),
    ),
    Objective: (
        _needs("Latency", "rate"),
        _needs("FewestDevices", "rate"),
        _needs("Goodput", "p99Ms"),
        _idle("'Throughput', 'Goodput'", "rate"),
        _idle("'Throughput', 'Latency'", "p99Ms"),
    ),
    TensorSpec: (
        Validation(
            "self.shape.all(d, d != 0)",
            "a dimension of 0 holds nothing; expected a positive size, or -1 for variable",
            ".shape",
        ),
    ),
    DeviceChoice: (
        Validation(
            "!has(self.kinds) || ('Simulated' in self.kinds) == (self.simulated.size() > 0)",
            "Simulated belongs here exactly when `simulated` lists devices",
            ".kinds",
        ),
    ),
    Toleration: (
        Validation(
            "self.operator == 'Exists' || has(self.key)",
            "missing; operator Equal needs it",
            ".key",
            "FieldValueRequired",
        ),
        Validation("self.operator == 'Equal' || !has(self.value)", "operator Exists takes no value", ".value"),
    ),
    ModelProfileSpec: (
        Validation(
            "self.model.sha256 == oldSelf.model.sha256 && self.deviceType == oldSelf.deviceType && "
            "self.precision == oldSelf.precision && has(self.partition) == has(oldSelf.partition) && "
            "(!has(self.partition) || self.partition == oldSelf.partition)",
            "what was measured, and on what, cannot change: it would be another measurement; make another ModelProfile",
        ),
    ),
}

VALIDATIONS: Mapping[str, tuple[Validation, ...]] = {model.__name__: rules for model, rules in _RULES.items()}
"""By the name of the model, as its schema bears it."""
