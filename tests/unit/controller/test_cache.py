from hypothesis import given
from hypothesis import strategies as st

from ensemble_operator.controller.cache import Cache
from ensemble_operator.controller.resources import NODES, SERVICES


def read(_, body):
    return body.get("said")


def thing(name, uid, version, said="x"):
    return {"metadata": {"namespace": "n", "name": name, "uid": uid, "resourceVersion": str(version)}, "said": said}


def test_only_what_matters_is_news():
    cache = Cache(read)

    assert cache.observe(SERVICES, thing("a", "1", 1))
    assert not cache.observe(SERVICES, thing("a", "1", 2)), "a heartbeat"
    assert cache.observe(SERVICES, thing("a", "1", 3, "y"))
    assert cache.observe(SERVICES, thing("a", "2", 4, "y")), "another object of the same name"
    assert cache.all(SERVICES) == {("n", "a"): "y"}


def test_what_is_of_no_interest_is_no_news():
    cache = Cache(read)

    assert not cache.observe(SERVICES, thing("a", "1", 1, None))
    assert cache.all(SERVICES) == {}
    assert not cache.forget(SERVICES, thing("a", "1", 2, None))


def test_late_news_of_what_is_gone_does_not_bring_it_back():
    cache = Cache(read)
    cache.observe(SERVICES, thing("a", "1", 1))
    cache.forget(SERVICES, thing("a", "1", 2))

    assert not cache.observe(SERVICES, thing("a", "1", 1))
    assert not cache.replace(SERVICES, [thing("a", "1", 1)], 1)
    assert cache.all(SERVICES) == {}


def test_a_list_removes_what_it_lacks_but_nothing_that_is_younger():
    cache = Cache(read)
    cache.observe(SERVICES, thing("old", "1", 3))
    cache.observe(SERVICES, thing("young", "2", 9))

    assert cache.replace(SERVICES, [], 5)
    assert set(cache.all(SERVICES)) == {("n", "young")}


def test_the_deletion_of_a_namesake_is_not_its_own():
    cache = Cache(read)
    cache.observe(SERVICES, thing("a", "2", 5))

    assert not cache.forget(SERVICES, thing("a", "1", 4))
    assert cache.all(SERVICES) == {("n", "a"): "x"}


@given(st.permutations(range(6)), st.integers(0, 6))
def test_the_end_is_the_same_in_whatever_order_watch_and_list_arrive(order, listed_at):
    """Six events of one object: made, changed four times, gone; and one list between them."""
    events = [("seen", version) for version in range(1, 6)] + [("gone", 6)]
    cache = Cache(read)
    for place, i in enumerate(order):
        if place == listed_at:
            cache.replace(SERVICES, [thing("a", "1", 3, "3")], 3)
        kind, version = events[i]
        body = thing("a", "1", version, str(version))
        cache.observe(SERVICES, body) if kind == "seen" else cache.forget(SERVICES, body)

    assert cache.all(SERVICES) == {}


def test_one_object_that_cannot_be_read_hides_no_other(caplog):
    def node(name, cpu):
        return {
            "metadata": {"name": name, "uid": name, "resourceVersion": "1"},
            "status": {"allocatable": {"cpu": cpu}},
        }

    cache = Cache()

    assert cache.replace(NODES, [node("odd", "1.2.3"), node("good", "2")], 2)
    assert list(cache.all(NODES)) == [("", "good")] and "Node odd is passed over" in caplog.text
