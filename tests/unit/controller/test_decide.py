import json
import time

import pytest

from ensemble_operator.api.ensemble import InferenceEnsemble
from ensemble_operator.controller.decide import Decider
from ensemble_operator.controller.decision import OVERVIEW
from ensemble_operator.controller.measuring import pod_of
from ensemble_operator.controller.records import record_of
from ensemble_operator.controller.resources import ENSEMBLES, NODES, PODS, PROFILES, REVISIONS
from ensemble_operator.controller.world import GIVEN_UP
from ensemble_operator.manifests.deployment import copy_objects
from ensemble_operator.manifests.edition import Failure, asked_hash, edition_object
from ensemble_operator.manifests.objects import Owner
from ensemble_operator.manifests.profiling import profiling_objects
from ensemble_operator.manifests.settings import PodSettings
from ensemble_runtime.config import Partition, PartitionObjective

A100 = "NVIDIA-A100-SXM4-40GB"
DIGEST = "a" * 64
MEMORY = Partition(objective=PartitionObjective.MEMORY, latency_ms=50)
MODEL = {"uri": "https://m/a.onnx", "format": "ONNX", "sha256": DIGEST}
IMAGES = PodSettings("runtime:onnx", "runtime:full")


def stamped(kind, name, uid=None, **rest):
    metadata = {"name": name, "namespace": "n", "uid": uid or f"uid-{name}", "resourceVersion": "1", "generation": 1}
    return {"kind": kind, "metadata": metadata | {"creationTimestamp": "2026-01-01T00:00:00Z"}, **rest}


def ensemble(name="digits", member=None, **spec):
    one = {"name": "a", "model": MODEL, "batchSizes": [1, 8]}
    tensor = {"datatype": "FP32", "shape": [4]}
    whole = {
        "members": [one | (member or {})],
        "inputs": [{"name": "x", **tensor}],
        "outputs": [{"name": "y", **tensor}],
        "devices": {"kinds": ["GPU"]},
    }
    return stamped("InferenceEnsemble", name, spec=whole | spec)


def profile(uri=None, digest=DIGEST, kind=A100):
    points = [{"batchSize": size, "seconds": 0.01, "memoryMib": 1024} for size in (1, 8)]
    body = stamped("ModelProfile", "a", spec={"model": {"sha256": digest}, "deviceType": kind, "points": points})
    body["apiVersion"] = "ensembles.dev/v1alpha1"
    if uri:
        body["metadata"]["annotations"] = {"ensembles.dev/uri": uri}
    return body


def small(name):
    """A node with two cores."""
    body = node(name, gpus=0)
    body["metadata"]["labels"] |= {"at": name}
    body["status"]["allocatable"] |= {"cpu": "2"}
    return body


def node(name="node", gpus=2):
    labels = {"nvidia.com/gpu.product": A100, "nvidia.com/gpu.memory": "40960", "nvidia.com/gpu.count": str(gpus)}
    body = stamped("Node", name)
    body["metadata"] |= {"labels": labels}
    allocatable = {"cpu": "32", "memory": "128Gi", "nvidia.com/gpu": str(gpus)}
    return body | {"status": {"allocatable": allocatable, "conditions": [{"type": "Ready", "status": "True"}]}}


def world(*bodies, given_up=None):
    kinds = {"InferenceEnsemble": ENSEMBLES, "ModelProfile": PROFILES, "Node": NODES, "Pod": PODS}
    kinds["ControllerRevision"] = REVISIONS
    state = {GIVEN_UP: given_up or {}}
    for body in bodies:
        resource = kinds[body["kind"]]
        namespace = body["metadata"]["namespace"] if resource.namespaced else ""
        record = record_of(resource, body)
        if record is not None:
            state[resource.plural, namespace, body["metadata"]["name"]] = record
    return state


def decided(decider, *bodies, name="digits", **rest):
    return decider(world(*bodies, **rest), time.monotonic() + 20)["n", name]


@pytest.fixture
def decider():
    return Decider(600 * 2**20, {})


def pods_of(decider, decision, body):
    """The pods that come of a decision, as the API server would have them."""
    document = record_of(ENSEMBLES, body).manifest()
    made = []
    for copy, plan in decision.plans.items():
        for one in copy_objects(
            InferenceEnsemble.model_validate(document), body["metadata"]["uid"], copy, plan, decision.digests, IMAGES
        ):
            if one["kind"] == "Pod":
                one["metadata"] |= stamped("Pod", one["metadata"]["name"])["metadata"] | {
                    "uid": one["metadata"]["name"]
                }
                one["spec"] |= {"nodeName": plan.cells[0][0].node}
                made.append(one | {"status": {"phase": "Running"}})
    return made


def test_what_is_known_is_planned(decider):
    decision = decided(decider, ensemble(), profile(), node())

    assert decision.plans[0].cells and not decision.missing and decision.waiting is None
    assert decision.supply.devices == 2 and decision.supply.sources == ("Labels",)


def test_a_faulty_spec_freezes_what_runs(decider):
    decision = decided(decider, ensemble(member={"weight": -1}), profile(), node())

    assert decision.frozen and "spec.members[0].weight" in decision.fault


def test_without_a_profile_a_free_device_is_named_to_measure_on(decider):
    decision = decided(decider, ensemble(), node())

    (missing,) = decision.missing
    assert missing.want == (DIGEST, A100, "FP32", None) and missing.device.node == "node"
    assert decision.frozen and not decision.plans


def test_cores_to_measure_on_are_those_of_a_node_that_has_some_left(decider):
    own = {"devices": {"kinds": ["CPU"], "max": 1}, "placement": {"nodeSelector": {"at": "first"}}}
    taken = ensemble("taken", replicas=2, **own)
    body = ensemble(member={"model": {**MODEL, "sha256": "b" * 64}}, devices={"kinds": ["CPU"], "max": 1})
    first, second = small("first"), small("second")
    known = profile(kind="cpu-1")
    pods = pods_of(decider, decided(decider, taken, known, first, second, name="taken"), taken)

    (missing,) = decided(decider, taken, body, known, first, second, *pods).missing
    assert missing.device.node == "second"
    (crowded,) = decided(decider, taken, body, known, first, *pods).missing
    assert crowded.device.node == "first"  # the scheduler has the last word


def test_what_was_given_up_is_not_waited_for(decider):
    told = {("n", pod_of((DIGEST, A100, "FP32", None))): "no such file"}
    decision = decided(decider, ensemble(), node(), given_up=told)

    assert decision.missing[0].given_up == "no such file" and "no profile of 'a'" in decision.waiting


def test_a_member_without_a_digest_has_that_of_what_was_measured_at_its_address(decider):
    model = {"uri": "https://m/a.onnx", "format": "ONNX"}
    unknown = decided(decider, ensemble(member={"model": model}), profile(), node())
    known = decided(decider, ensemble(member={"model": model}), profile("https://m/a.onnx"), node())

    assert unknown.missing[0].want[0] == "https://m/a.onnx" and "is not known yet" in unknown.waiting
    assert known.digests == {"a": DIGEST} and known.plans


def test_a_new_operator_decides_as_the_pods_are(decider):
    body = ensemble(replicas=2)
    first = decided(decider, body, profile(), node("x"), node("y"))
    pods = pods_of(decider, first, body)
    again = decided(Decider(600 * 2**20, {}), body, profile(), node("x"), node("y"), node("w", 8), *pods)

    assert {i: p.digest for i, p in again.plans.items()} == {i: p.digest for i, p in first.plans.items()}


def test_a_new_revision_is_planned_beside_the_old_where_there_is_room_and_on_its_devices_where_there_is_none(decider):
    body = ensemble(devices={"kinds": ["GPU"], "max": 1})
    first = decided(decider, body, profile(), node(gpus=1))
    pods = pods_of(decider, first, body)
    changed = ensemble(devices={"kinds": ["GPU"], "max": 1}, combination={"rule": "Median"})

    def slots(decision):
        return {(d.node, d.name) for d, _, _ in decision.plans[0].cells}

    beside = decided(Decider(600 * 2**20, {}), changed, profile(), node(gpus=2), *pods)
    instead = decided(Decider(600 * 2**20, {}), changed, profile(), node(gpus=1), *pods)

    assert not slots(beside) & slots(first)
    assert slots(instead) == slots(first)


@pytest.fixture(params=["rolling", "recreated"])
def cordoned(request, decider):
    """What an ensemble on a cordoned node is, its pods there, and the nodes: one of them open."""
    strategy = {"rolling": "RollingUpdate", "recreated": "Recreate"}[request.param]
    rest = {"devices": {"kinds": ["GPU"], "max": 1}, "rollout": {"strategy": strategy}}
    body = ensemble(**rest)
    pods = pods_of(decider, decided(decider, body, profile(), node("shut", 1)), body)
    nodes = [node("shut", 1) | {"spec": {"unschedulable": True}}, node("open", 1)]
    return rest, pods, nodes


def homes(decision):
    return {d.node for d, _, _ in decision.plans[0].cells}


def test_what_runs_on_a_cordoned_node_stays_there(decider, cordoned):
    rest, pods, nodes = cordoned
    assert homes(decided(decider, ensemble(**rest), profile(), *nodes, *pods)) == {"shut"}


def test_after_an_edit_nothing_starts_on_a_cordoned_node(decider, cordoned):
    rest, pods, nodes = cordoned
    changed = ensemble(**rest, combination={"rule": "Median"})
    assert homes(decided(decider, changed, profile(), *nodes, *pods)) == {"open"}
    alone = decided(Decider(600 * 2**20, {}), changed, profile(), nodes[0], *pods)
    assert alone.frozen and not alone.plans


@pytest.mark.parametrize("state", ["evicted", "unscheduled"])
def test_a_copy_without_its_pod_leaves_a_cordoned_node(decider, cordoned, state):
    rest, pods, nodes = cordoned
    for pod in pods:
        pod["spec"].pop("nodeName")
    left = pods if state == "unscheduled" else []
    assert homes(decided(decider, ensemble(**rest), profile(), *nodes, *left)) == {"open"}


def test_a_new_revision_that_fits_nowhere_leaves_what_runs(decider):
    body = ensemble()
    pods = pods_of(decider, decided(decider, body, profile(), node()), body)
    large = profile(digest="b" * 64)
    large["metadata"]["name"] = "b"
    large["spec"]["points"] = [{"batchSize": 1, "seconds": 0.01, "memoryMib": 90_000}]
    other = {"model": {"uri": "https://m/b.onnx", "format": "ONNX", "sha256": "b" * 64}, "batchSizes": [1]}
    decision = decided(decider, ensemble(member=other), profile(), large, node(), *pods)

    assert decision.frozen and not decision.plans and decision.waiting


def spec_of(body):
    return InferenceEnsemble.model_validate(record_of(ENSEMBLES, body).manifest()).spec


def kept(body, decision, ordinal, served=True, failure=None):
    """The ControllerRevision that keeps what a body asks for."""
    owner = Owner("digits", "n", "uid-digits")
    made = edition_object(owner, spec_of(body), decision.digests, ordinal, served=served, failure=failure)
    made["metadata"] |= stamped("ControllerRevision", made["metadata"]["name"])["metadata"]
    return made


def test_what_was_given_up_is_not_planned_but_what_served_before_as_it_runs(decider):
    before, after = ensemble(devices={"kinds": ["GPU"], "max": 1}), ensemble(member={"weight": 2.0}, replicas=2)
    first = decided(decider, before, profile(), node())
    failed = Failure(asked_hash(spec_of(after)), "pod x was not ready")
    history = [kept(before, first, 1), kept(after, first, 2, served=False, failure=failed)]
    pods = pods_of(decider, first, before)

    for later in (decider, Decider(600 * 2**20, {})):
        back = decided(later, after, profile(), node(), *history, *pods)
        assert back.retreat.message == "pod x was not ready" and back.revision == first.revision
        assert back.plans[0].digest == first.plans[0].digest
        assert set(back.plans) == {0, 1}, "copies follow what is asked for now"

    tried = decided(decider, ensemble(member={"weight": 3.0}), profile(), node(), *history, *pods)
    assert tried.retreat is None and tried.revision not in (first.revision, back.revision)


def test_what_is_ready_counts_for_more_than_what_is_new_when_it_goes_back(decider):
    """The same revision with another plan: only its devices tell the editions apart."""
    before = ensemble(devices={"kinds": ["GPU"], "max": 1})
    after = ensemble(devices={"kinds": ["GPU"], "max": 1}, objective={"goal": "FewestDevices", "rate": 1})
    first = decided(decider, before, profile(), node("x", 1))
    failed = Failure(asked_hash(spec_of(after)), "late")
    history = [kept(before, first, 1), kept(after, first, 2, served=False, failure=failed)]
    (old,) = pods_of(decider, first, before)
    (new,) = pods_of(decider, decided(Decider(600 * 2**20, {}), before, profile(), node("y", 1)), before)
    old["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    new["metadata"]["creationTimestamp"] = "2026-01-01T01:00:00Z"

    back = decided(Decider(600 * 2**20, {}), after, profile(), node("x", 1), node("y", 1), *history, old, new)
    assert {d.node for d, _, _ in back.plans[0].cells} == {"x"}


def test_suspended_it_holds_nothing_and_another_gets_its_devices(decider):
    mine = ensemble(devices={"kinds": ["GPU"], "max": 1})
    other = ensemble("other", devices={"kinds": ["GPU"], "max": 1})
    decided(decider, mine, profile(), node(gpus=1))
    asleep = ensemble(devices={"kinds": ["GPU"], "max": 1}, suspend=True)

    assert decided(decider, asleep, other, profile(), node(gpus=1)).suspended
    assert decided(decider, asleep, other, profile(), node(gpus=1), name="other").plans


def test_the_copy_whose_gpu_broke_moves_and_the_other_stays(decider):
    body = ensemble(devices={"kinds": ["GPU"], "max": 1}, replicas=2)
    first = decided(decider, body, profile(), node(gpus=2))
    pods = pods_of(decider, first, body)
    assert [d.name for plan in first.plans.values() for d, _, _ in plan.cells] == ["gpu0", "gpu1"]
    health = {"name": "nvidia.com/gpu", "resources": [{"resourceID": "GPU-a", "health": "Unhealthy"}]}
    pods[0]["status"]["containerStatuses"] = [{"name": "runtime", "allocatedResourcesStatus": [health]}]
    for later in (decider, Decider(600 * 2**20, {})):
        again = decided(later, body, profile(), node(gpus=1), node("spare", gpus=1), *pods)
        assert [(d.node, d.name) for plan in again.plans.values() for d, _, _ in plan.cells] == [
            ("spare", "gpu0"),
            ("node", "gpu1"),
        ]


def away(body):
    return body | {"status": body["status"] | {"conditions": [{"type": "Ready", "status": "Unknown"}]}}


def test_a_copy_whose_node_is_away_is_left_alone_where_no_other_has_room_and_goes_on_when_it_is_back(decider):
    body = ensemble(devices={"kinds": ["GPU"], "max": 1})
    first = decided(decider, body, profile(), node("x"))
    pods = pods_of(decider, first, body)
    for _ in range(2):
        lost = decided(decider, body, profile(), away(node("x")), *pods)
        assert not lost.plans and lost.stranded == {0} and "NotReady" in lost.waiting
    back = decided(decider, body, profile(), node("x"), node("y"), *pods)
    assert back.plans[0].digest == first.plans[0].digest and not back.stranded
    moved = decided(decider, body, profile(), away(node("x")), node("y"), *pods)
    assert moved.plans[0].cells[0][0].node == "y" and not moved.stranded


def test_a_copy_that_gave_way_to_another_is_not_stranded(decider):
    mine = ensemble(devices={"kinds": ["GPU"], "max": 1})
    pods = pods_of(decider, decided(decider, mine, profile(), node(gpus=1)), mine)
    urgent = ensemble("urgent", devices={"kinds": ["GPU"], "max": 1}, priority=5, preemption="LowerPriority")
    for _ in range(2):
        robbed = decided(decider, mine, urgent, profile(), node(gpus=1), *pods)
        assert robbed.preempted_by == "n/urgent" and robbed.waiting and not robbed.stranded
    pods += pods_of(decider, decided(decider, mine, urgent, profile(), node(gpus=1), *pods, name="urgent"), urgent)
    restarted = decided(Decider(600 * 2**20, {}), mine, urgent, profile(), node(gpus=1), *pods)
    assert not restarted.plans and not restarted.stranded
    told = mine | {"status": {"preemptedBy": "n/urgent"}}
    later = Decider(600 * 2**20, {})
    assert decided(later, told, urgent, profile(), node(gpus=1), *pods).preempted_by == "n/urgent"
    again = decided(later, told, urgent, profile(), node(gpus=2), *pods)
    assert again.plans and again.preempted_by is None
    lost = decided(later, told, urgent, profile(), away(node(gpus=2)), *pods)
    assert lost.waiting and lost.preempted_by is None, "what was said long ago does not count"
    back = decided(decider, mine, profile(), node(gpus=1))
    assert back.plans and back.preempted_by is None


def test_a_slip_in_the_stated_inventory_takes_no_devices_away(decider):
    state = world(ensemble(), profile(), node())
    state["configmaps", "n", "inventory"] = {"nodes.yaml": "- name: [broken"}
    decision = decider(state, time.monotonic() + 20)["n", "digits"]

    assert decision.frozen and "inventory" in decision.waiting


def test_another_reserve_of_memory_leaves_what_runs(decider):
    """What a pod says of its GPU is then not what the inventory says of it."""
    body = ensemble(devices={"kinds": ["GPU"], "max": 1})
    first = decided(decider, body, profile(), node())
    again = decided(Decider(900 * 2**20, {}), body, profile(), node(), *pods_of(decider, first, body))

    assert not again.frozen and again.plans[0].digest == first.plans[0].digest


def test_simulated_devices_need_no_node(decider):
    simulated = {"simulated": [{"type": A100, "count": 2, "memoryMib": 8192}]}
    decision = decided(decider, ensemble(devices=simulated, replicas=2), profile())

    assert set(decision.plans) == {0, 1} and not decision.missing


def test_the_same_world_gives_the_very_same_decisions(decider):
    bodies = (ensemble(), profile(), node())
    cold, first, second = (decider(world(*bodies), time.monotonic() + 20) for _ in range(3))

    assert cold["n", "digits"].plans[0].digest == first["n", "digits"].plans[0].digest
    assert first == second and first["n", "digits"].plans[0] is second["n", "digits"].plans[0]
    assert first[OVERVIEW].devices == {(A100, "free"): 2}


def test_what_a_pod_of_ours_holds_is_in_use(decider):
    body = ensemble(devices={"kinds": ["GPU"], "max": 1})
    pods = pods_of(decider, decided(decider, body, profile(), node()), body)

    overview = decider(world(body, profile(), node(), *pods), time.monotonic() + 20)[OVERVIEW]
    assert overview.devices == {(A100, "used"): 1, (A100, "free"): 1}
    assert json.loads(pods[0]["metadata"]["annotations"]["ensembles.dev/devices"])[0]["type"] == A100


def partitioned(name="digits", **spec):
    """Its member fits no A100 whole, but does with a share of its operators on a core."""
    member = {"partition": {"objective": "Memory", "latencyMs": 50}, "batchSizes": [1]}
    body = ensemble(name, member, devices={"kinds": ["GPU", "CPU"]}, **spec)
    profiles = []
    for kind, mib, second in ((A100, 50_000, 0), ("cpu-1", 50_000, 0), (f"{A100}:cpu-1", 9_000, 2_000)):
        found = profile(kind=kind)
        point = {"batchSize": 1, "seconds": 0.01, "memoryMib": mib}
        found["spec"]["points"] = [point | ({"secondMemoryMib": second} if second else {})]
        found["metadata"] |= {"name": f"on-{kind.lower().replace(':', '-')}"}
        profiles.append(found)
    return body, *profiles


def test_a_partitioned_member_gets_a_gpu_and_a_core_beside_it(decider):
    body, *profiles = partitioned()
    decision = decided(decider, body, *profiles, node())
    (pod,) = pods_of(decider, decision, body)

    devices = json.loads(pod["metadata"]["annotations"]["ensembles.dev/devices"])
    assert [(d["kind"], d["type"]) for d in devices] == [("CPU", "cpu-1"), ("GPU", A100)]
    (container,) = pod["spec"]["containers"]
    requests = container["resources"]["requests"]
    assert (requests["cpu"], requests["nvidia.com/gpu"]) == ("2", "1"), "a core beside the GPU, and the partition's"
    assert container["resources"]["limits"]["cpu"] == "2", "so that they are its own"


def test_a_pair_is_measured_on_a_gpu_and_a_core_of_one_node(decider):
    body, gpu, cores, _ = partitioned()
    decision = decided(decider, body, gpu, cores, node("bare", gpus=0), node())

    (missing,) = decision.missing
    assert missing.want == (DIGEST, f"{A100}:cpu-1", "FP32", MEMORY) and decision.waiting == "waits for profiles"
    assert (missing.device.type, missing.second.type) == (A100, "cpu-1")
    assert missing.device.node == missing.second.node == "node"


def test_a_split_for_something_else_is_another_measurement(decider):
    """Measured for the least time, then edited: what holds then is measured anew, by a pod and a profile of its own."""
    body, gpu, cores, pair = partitioned()
    pair["spec"]["partition"] = {"objective": "Latency"}
    (missing,) = decided(decider, body, gpu, cores, pair, node()).missing
    assert missing.want[-1] == MEMORY
    quick = Partition(objective=PartitionObjective.LATENCY)
    assert pod_of(missing.want) != pod_of((*missing.want[:3], quick)) != pod_of((*missing.want[:3], None))

    pair["spec"]["partition"] = {"objective": "Memory", "latencyMs": 50}
    assert not decided(decider, body, gpu, cores, pair, node()).missing


def test_a_pair_that_was_measured_when_profiles_did_not_say_for_what_is_measured_anew(decider):
    """One written by hand means any split."""
    body, gpu, cores, pair = partitioned()
    assert not decided(decider, body, gpu, cores, pair, node()).missing
    pair["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "ensemble-operator"}
    (missing,) = decided(decider, body, gpu, cores, pair, node()).missing
    assert missing.want[-1] == MEMORY


def test_nobody_waits_for_a_pair_that_there_is_not(decider):
    """A GPU whose node has no core to spare makes none; nor does one that others hold, or a member that stays whole."""
    body, gpu, cores, _ = partitioned()
    full = node()
    full["status"]["allocatable"]["cpu"] = "1"
    assert not decided(decider, body, gpu, cores, full, node("bare", gpus=0)).missing
    whole = ensemble("digits", {"batchSizes": [1]}, devices={"kinds": ["GPU", "CPU"]})
    assert not decided(decider, whole, gpu, cores, node()).missing
    other = ensemble("other")
    taken = pods_of(decider, decided(decider, other, profile(), node(gpus=1), name="other"), other)
    assert not decided(decider, body, gpu, cores, node(gpus=1), *taken).missing


def test_a_pair_that_is_being_measured_is_waited_for(decider):
    body, gpu, cores, _ = partitioned()
    first = decided(decider, body, gpu, cores, node(gpus=1))
    document = InferenceEnsemble.model_validate(record_of(ENSEMBLES, body).manifest())
    (missing,) = first.missing
    made = profiling_objects(
        document, body["metadata"]["uid"], document.spec.members[0], missing.device, IMAGES, second=missing.second,
        digest=DIGEST,
    )  # fmt: skip
    pod = made[-1]
    pod["metadata"] |= stamped("Pod", pod["metadata"]["name"])["metadata"]
    pod |= {"spec": pod["spec"] | {"nodeName": "node"}, "status": {"phase": "Running"}}
    again = decided(decider, body, gpu, cores, node(gpus=1), pod)
    assert again.waiting == "waits for profiles" and again.missing[0].measuring and not again.plans


def test_two_sets_of_cores_make_a_pair_where_there_is_no_gpu(decider):
    body = ensemble("digits", {"partition": {"objective": "Latency"}, "batchSizes": [1]}, devices={"kinds": ["CPU"]})
    (missing,) = decided(decider, body, profile(kind="cpu-1"), node("bare", gpus=0)).missing
    assert missing.want[1] == "cpu-1:cpu-1" and missing.device.name != missing.second.name


def test_the_runtime_is_told_of_the_second_device(decider):
    from ensemble_operator.api.ensemble import InferenceEnsemble
    from ensemble_runtime.config import RuntimeConfig

    body, *profiles = partitioned()
    decision = decided(decider, body, *profiles, node())
    document = InferenceEnsemble.model_validate(record_of(ENSEMBLES, body).manifest())
    config_map, *_ = copy_objects(document, "uid", 0, decision.plans[0], decision.digests, IMAGES)
    config = RuntimeConfig.model_validate_json(config_map["data"]["config.json"])

    (cell,) = config.cells
    slots = {slot.name: slot for slot in config.devices}
    assert (slots[cell.device].type, slots[cell.second_device].type) == (A100, "cpu-1")
    assert slots[cell.second_device].memory_bytes == 2_000 * 2**20


def test_a_partitioned_ensemble_stays_where_it_is_and_nobody_gets_its_core(decider):
    body, *profiles = partitioned()
    there = node() | {"status": node()["status"]}
    there["status"]["allocatable"]["cpu"] = "3"
    first = decided(decider, body, *profiles, there)
    pods = pods_of(decider, first, body)
    other = ensemble("other", {"model": MODEL | {"sha256": "b" * 64}}, devices={"kinds": ["CPU"]}, replicas=3)
    cheap = profile(kind="cpu-1", digest="b" * 64)
    anew = Decider(600 * 2**20, {})
    decisions = anew(world(body, other, *profiles, cheap, there, *pods), time.monotonic() + 20)

    assert decisions["n", "digits"].plans[0].digest == first.plans[0].digest
    held = {d.name for d in first.plans[0].devices}
    others = [{d.name for d in plan.devices} for plan in decisions["n", "other"].plans.values()]
    assert others and not any(held & names for names in others)


def test_members_are_partitioned_over_cores_of_the_same_node_only(decider):
    body, *profiles = partitioned()
    full = node("gpus")
    full["status"]["allocatable"]["cpu"] = "0"
    decision = decided(decider, body, *profiles, full, node("cores", gpus=0))

    assert not decision.plans
    assert decision.waiting
