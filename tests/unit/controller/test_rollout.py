from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ensemble_operator.api.rollout import Strategy
from ensemble_operator.controller.rollout import RunningPod, WantedSet, steps, within

ROLLING, RECREATE, ON_DELETE = Strategy.ROLLING_UPDATE, Strategy.RECREATE, Strategy.ON_DELETE


def wanted(copy=0, plan="p", revision="r", devices=("g0",), shards=1):
    names = tuple(f"{revision}-{plan}-{copy}-{shard}" for shard in range(shards))
    return WantedSet(copy, revision, plan, names, frozenset(("n", d) for d in devices))


def pods(want, **changes):
    return [
        replace(
            RunningPod(
                name, f"uid-{name}", want.copy, want.revision, want.plan, want.devices, i == 0, True, False, False
            ),
            **changes,
        )
        for i, name in enumerate(want.pods)
    ]


def removed(plan):
    return [removal.pod.name for removal in plan.delete]


def test_what_is_not_there_is_made():
    want = wanted(shards=2)

    assert steps([want], [], ROLLING).create == want.pods


def test_what_is_as_wanted_is_left_alone():
    want = wanted()
    now = steps([want], pods(want), ROLLING)

    assert (now.create, now.delete, now.serving, now.ready_copies) == ((), (), "r", 1)


def test_one_lost_shard_alone_is_made_anew_under_its_name():
    want = wanted(shards=3)

    assert steps([want], pods(want)[:2], ROLLING).create == (want.pods[2],)


def test_a_pod_that_ended_is_deleted_then_made_anew():
    want = wanted()
    first = steps([want], pods(want, ended=True, ready=False), ROLLING)
    second = steps([want], [], ROLLING)

    assert removed(first) == list(want.pods) and not first.create
    assert second.create == want.pods


def test_with_free_devices_the_new_starts_beside_the_old_which_goes_when_the_new_is_ready():
    old, new = wanted(plan="a"), wanted(plan="b", revision="s", devices=("g1",))

    first = steps([new], pods(old), ROLLING)
    second = steps([new], pods(old) + pods(new, ready=False), ROLLING)
    third = steps([new], pods(old) + pods(new), ROLLING)

    assert first.create == new.pods and not first.delete and first.serving == "r"
    assert not second.create and not second.delete and second.serving == "r"
    assert removed(third) == list(old.pods) and third.serving == "s"


def test_where_they_share_devices_the_old_goes_first():
    old, new = wanted(plan="a"), wanted(plan="b")

    first = steps([new], pods(old), ROLLING)
    second = steps([new], pods(old, deleting=True), ROLLING)
    third = steps([new], [], ROLLING)

    assert removed(first) == list(old.pods) and not first.create
    assert not second.create and not second.delete
    assert third.create == new.pods


def test_a_pod_with_a_broken_device_goes_first_for_what_replaces_it_cannot_be_scheduled_beside_it():
    old, new = wanted(plan="a"), wanted(plan="b", devices=("g1",))

    assert removed(steps([new], pods(old, sick=True), ROLLING)) == list(old.pods)
    assert steps([new], [], ROLLING).create == new.pods


def test_copies_that_share_devices_are_replaced_one_after_the_other():
    old = [wanted(copy, "a", devices=(f"g{copy}",)) for copy in range(3)]
    new = [wanted(copy, "b", devices=(f"g{copy}",)) for copy in range(3)]
    running = [pod for want in old for pod in pods(want)]

    first = steps(new, running, ROLLING)
    assert removed(first) == list(old[0].pods)

    loading = pods(new[0], ready=False) + running[1:]
    assert not steps(new, loading, ROLLING).delete, "the first is not back yet"

    assert removed(steps(new, pods(new[0]) + running[1:], ROLLING)) == list(old[1].pods)


def test_recreate_takes_all_down_even_where_devices_are_free():
    old = [wanted(copy, "a", devices=(f"g{copy}",)) for copy in range(2)]
    new = [wanted(copy, "b", devices=(f"h{copy}",)) for copy in range(2)]
    now = steps(new, [pod for want in old for pod in pods(want)], RECREATE)

    assert removed(now) == [name for want in old for name in want.pods] and not now.create


def test_on_delete_waits_and_says_so():
    old, new = wanted(plan="a"), wanted(plan="b")
    now = steps([new], pods(old), ON_DELETE)

    assert not now.create and not now.delete and old.pods[0] in now.blocked
    assert steps([new], [], ON_DELETE).create == new.pods


def test_on_delete_does_not_wait_where_a_copy_was_lost_and_comes_back_as_it_was():
    old, moved, new = wanted(plan="a"), wanted(plan="b", devices=("g1",)), wanted(plan="b", revision="s")

    assert steps([moved], pods(old, lost=True), ON_DELETE).create == moved.pods
    assert removed(steps([moved], pods(old, lost=True) + pods(moved), ON_DELETE)) == list(old.pods)
    assert steps([new], pods(old, lost=True), ON_DELETE).blocked


def test_a_new_revision_that_keeps_its_names_waits_for_the_old_to_go():
    old = WantedSet(0, "r", "p", ("same",), frozenset({("n", "g0")}))
    new = replace(old, revision="s", devices=frozenset({("n", "g1")}))

    assert removed(steps([new], pods(old), ROLLING)) == ["same"]
    assert not steps([new], pods(old, deleting=True), ROLLING).create


def test_copies_that_are_not_wanted_any_more_go():
    two = [wanted(copy, devices=(f"g{copy}",)) for copy in range(2)]
    running = [pod for want in two for pod in pods(want)]

    assert removed(steps(two[:1], running, ROLLING)) == list(two[1].pods)
    assert removed(steps([], running, ROLLING)) == [p.name for p in running]


def test_what_is_left_of_a_stranded_copy_stays_but_for_pods_with_broken_devices():
    copy = wanted(0, shards=2)
    left = pods(copy)[:1]
    now = steps([], left, ROLLING, frozenset({0}))

    assert not now.delete and not now.create and now.ready_copies == 1
    assert removed(steps([], pods(copy, sick=True)[:1], ROLLING, frozenset({0}))) == [copy.pods[0]]


def test_within_a_budget_those_that_do_not_serve_go_first():
    dead, alive = wanted(0, "a"), wanted(1, "a")
    now = steps([], pods(alive) + pods(dead, ready=False), ROLLING)

    assert [r.pod.name for r in within(1, now.delete)] == list(dead.pods)


DEVICES = st.sets(st.sampled_from(["g0", "g1", "g2", "g3"]), min_size=1, max_size=2)


@given(st.data(), st.integers(1, 3), st.sampled_from([ROLLING, RECREATE]))
def test_every_change_comes_to_its_end_and_no_device_is_ever_held_twice(data, copies, strategy):
    """A world in which deletions take a cycle, and pods take one to become ready."""

    def drawn(plan, revision):
        free, sets = {"g0", "g1", "g2", "g3"}, []
        for copy in range(copies):
            devices = data.draw(st.sets(st.sampled_from(sorted(free)), min_size=1, max_size=1))
            free -= devices
            sets.append(wanted(copy, plan, revision, tuple(devices)))
        return sets

    world = [pod for want in drawn("a", "r") for pod in pods(want)]
    goal = drawn("b", data.draw(st.sampled_from(["r", "s"])))
    made = {name: want for want in goal for name in want.pods}
    for _ in range(12 * copies):
        now = steps(goal, world, strategy)
        names = {pod.name for pod in world}
        assert not names & set(now.create)
        going = {r.pod.name for r in now.delete}
        world = [replace(p, deleting=p.name in going, ready=p.ready or not p.deleting) for p in world if not p.deleting]
        for name in now.create:
            want = made[name]
            held = {slot for pod in world for slot in pod.devices if pod.copy == want.copy}
            assert not held & want.devices
            world += [replace(pods(want)[0], ready=False)]
    now = steps(goal, world, strategy)
    assert {p.name for p in world} == set(made) and not now.create and not now.delete


def test_what_the_service_leads_to_stays_until_as_many_of_the_new_serve():
    old = [wanted(copy, "a", devices=(f"g{copy}",)) for copy in range(3)]
    new = [wanted(copy, "b", "s", devices=(f"h{copy}",)) for copy in range(3)]
    running = [pod for want in old for pod in pods(want)]

    for ready in range(3):
        now = steps(new, running + [p for w in new for p in pods(w, ready=w.copy < ready)], ROLLING)
        assert now.serving == "r" and not now.delete
    last = steps(new, running + [p for w in new for p in pods(w)], ROLLING)
    assert last.serving == "s" and sorted(removed(last)) == sorted(p.name for p in running)


def test_the_service_does_not_wait_for_a_copy_whose_devices_the_old_one_holds():
    old = [wanted(copy, "a", devices=(f"g{copy}",)) for copy in range(2)]
    new = [wanted(0, "b", "s", devices=("h0",)), wanted(1, "b", "s", devices=("g0",))]
    now = steps(new, [p for w in old for p in pods(w)] + pods(new[0]), ROLLING)

    assert removed(now) == list(old[0].pods)


def test_the_service_leads_to_pods_that_leave_until_others_serve_or_they_are_gone():
    old, new = wanted(plan="a"), wanted(plan="b", revision="s")
    leaving = pods(old, deleting=True)

    assert steps([new], leaving, RECREATE).serving == "r"
    assert steps([new], leaving + pods(new), RECREATE).serving == "s"
    assert steps([new], pods(old, deleting=True, ready=False), RECREATE).serving == "s"


def test_without_room_it_says_what_has_to_go_first():
    old, new = wanted(plan="a"), wanted(plan="b", revision="s")

    for strategy in (ROLLING, RECREATE):
        assert old.pods[0] in steps([new], pods(old), strategy).crowded
    assert steps([replace(new, devices=frozenset({("n", "g1")}))], pods(old), ROLLING).crowded is None
