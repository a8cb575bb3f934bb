"""Quantities, and what pods and nodes say of themselves."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_operator.inventory.node_record import node_record
from ensemble_operator.inventory.pod_record import broken_devices, claimed, held_devices
from ensemble_operator.inventory.product import device_type
from ensemble_operator.inventory.quantity import whole


@pytest.mark.parametrize(
    ("text", "value"),
    [("2", 2), (8, 8), ("1.5Gi", 1610612736), ("250m", 1), ("1e3", 1000), ("12E", 12 * 10**18), ("1k", 1000), ("0", 0)],
)
def test_quantities_are_read_as_kubernetes_does(text: str | int, value: int) -> None:
    assert whole(text) == value


@given(st.integers(0, 10**9), st.sampled_from(["", "n", "u", "m", "k", "M", "G", "Ki", "Mi", "Gi"]))
def test_thousandths_are_a_thousand_times_as_many(number: int, suffix: str) -> None:
    scale = dict.fromkeys([""], Fraction(1))
    scale |= {"n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000)}
    scale |= {"k": Fraction(1000), "M": Fraction(10**6), "G": Fraction(10**9)}
    scale |= {"Ki": Fraction(2**10), "Mi": Fraction(2**20), "Gi": Fraction(2**30)}
    exact = number * scale[suffix] * 1000
    assert whole(f"{number}{suffix}", per=1000) == -(-exact.numerator // exact.denominator)


@pytest.mark.parametrize("text", ["", "Gi", "1Xi", "1e", "two", "1 Gi"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a quantity"):
        whole(text)


def test_heartbeats_do_not_matter_and_labels_do(bodies: Any) -> None:
    before = bodies.node()
    beat, other = copy.deepcopy(before), copy.deepcopy(before)
    beat["status"]["conditions"][0]["lastHeartbeatTime"] = "later"
    other["metadata"]["labels"]["zone"] = "b"
    assert node_record(before) == node_record(beat) != node_record(other)


def test_init_containers_count_by_the_largest_and_sidecars_add(bodies: Any) -> None:
    def container(cpu: str, **more: Any) -> Any:
        return {"name": "x", "resources": {"requests": {"cpu": cpu}}, **more}

    pod = bodies.pod(
        requests={"cpu": "1", "nvidia.com/gpu": "1"},
        initContainers=[
            container("3"),
            container("500m", restartPolicy="Always"),
            container("2"),  # beside the sidecar: 2.5, less than the 3 of the first
            {"name": "gpu", "resources": {"requests": {"nvidia.com/gpu": "2"}}},
        ],
        overhead={"cpu": "100m"},
    )
    assert claimed(pod).requests == {"cpu": 3100, "nvidia.com/gpu": 2}
    pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "2900m"
    assert claimed(pod).requests["cpu"] == 2900 + 500 + 100
    pod["spec"]["resources"] = {"requests": {"cpu": "8"}}
    assert claimed(pod).requests["cpu"] == 8100


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_pods_that_ended_take_nothing(bodies: Any, phase: str) -> None:
    assert claimed(bodies.pod(phase=phase)) is None
    assert claimed(bodies.pod(phase=phase, holds=[("n", "gpu0")])) is None


def test_a_pod_of_ours_holds_its_devices_before_it_is_scheduled(bodies: Any) -> None:
    ours = claimed(bodies.pod(node="", phase="Pending", holds=[("n", "gpu1"), ("n", "cpu0")]))
    others = claimed(bodies.pod(node="", phase="Pending", requests={"nvidia.com/gpu": "1"}))
    assert others is None
    assert held_devices([ours]) == {"n": {"gpu1", "cpu0"}}


def test_as_many_devices_of_a_pod_are_broken_as_its_node_reports_unhealthy(bodies: Any) -> None:
    holds = [("n", "gpu0"), ("n", "gpu1"), ("n", "mig-1g-5gb-0"), ("n", "cpu0")]
    health = {"nvidia.com/gpu": ["Unhealthy", "Healthy"], "nvidia.com/mig-1g.5gb": ["Unknown"], "cpu": ["Unhealthy"]}
    sick, well = claimed(bodies.pod(holds=holds, health=health)), claimed(bodies.pod(holds=[("n", "gpu2")]))
    assert broken_devices([sick, well]) == {"n": {"gpu1"}}
    assert held_devices([sick, well]) == {"n": {"gpu0", "gpu2", "mig-1g-5gb-0", "cpu0"}}


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"node": "n"}]', "null"])
def test_a_pod_with_an_annotation_that_makes_no_sense_counts_by_its_requests(bodies: Any, text: str) -> None:
    pod = bodies.pod(holds=[], requests={"nvidia.com/gpu": "1"})
    pod["metadata"]["annotations"]["ensembles.dev/devices"] = text
    assert claimed(pod).holds is None
    assert claimed(pod).requests == {"nvidia.com/gpu": 1}


def test_a_model_has_one_name_whoever_writes_it() -> None:
    assert device_type("NVIDIA A100-SXM4-40GB") == device_type("NVIDIA-A100-SXM4-40GB") == "NVIDIA-A100-SXM4-40GB"
    assert device_type("NVIDIA A100-SXM4-40GB MIG 1g.5gb") == "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb"
    assert device_type(" Tesla T4 ") == "Tesla-T4"


@given(st.text(min_size=1))
def test_names_of_models_are_their_own_canonical_names(product: str) -> None:
    assert device_type(device_type(product)) == device_type(product)
