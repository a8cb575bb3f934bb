import json

import pytest

from ensemble_operator.api.ensemble import EnsembleSpec
from ensemble_operator.controller.decision import Decision, Retreat
from ensemble_operator.controller.edition_record import EditionRecord
from ensemble_operator.controller.history import entries, given_up, last_good
from ensemble_operator.controller.progress import Progress
from ensemble_operator.controller.records import record_of
from ensemble_operator.controller.resources import REVISIONS
from ensemble_operator.manifests.edition import Failure, asked_hash, edition_hash, restored
from ensemble_operator.manifests.objects import Owner

OWNER = Owner("digits", "n", "uid")
DIGESTS = {"a": "a" * 64}
COMPLETE, LATE, WAITING = Progress(complete=True), Progress(late="pod x was not ready"), Progress(due=5.0)


def spec(weight=1.0, **rest):
    model = {"uri": "https://m/a.onnx", "format": "ONNX", "sha256": "a" * 64}
    tensor = {"datatype": "FP32", "shape": [4]}
    document = {
        "members": [{"name": "a", "weight": weight, "model": model}],
        "inputs": [{"name": "x", **tensor}],
        "outputs": [{"name": "y", **tensor}],
        **rest,
    }
    return EnsembleSpec.model_validate(document)


def seen(body) -> EditionRecord:
    """What is kept of an object once the API server has it."""
    made = {"creationTimestamp": "2026-01-01T00:00:00Z", "uid": body["metadata"]["name"], "resourceVersion": "1"}
    return record_of(REVISIONS, {**body, "metadata": body["metadata"] | made})


class Book:
    """The history of an ensemble, as the operator keeps it."""

    def __init__(self):
        self.editions: dict[str, EditionRecord] = {}

    def note(self, wanted, progress, retreat=None, **decision):
        decided = Decision(revision="r", digests=DIGESTS, plans={0: None}, retreat=retreat, **decision)
        found = entries(OWNER, wanted, decided, self.editions.values(), progress)
        for edition in found.strike:
            del self.editions[edition.name]
        for body in found.write:
            self.editions[body["metadata"]["name"]] = seen(body)
        return found

    def of(self, wanted):
        return next((e for e in self.editions.values() if e.edition == edition_hash(wanted, DIGESTS)), None)


@pytest.fixture
def book():
    """One edition that has served."""
    found = Book()
    found.note(spec(), WAITING)
    found.note(spec(), COMPLETE)
    return found


def test_an_edition_is_written_down_when_it_begins_and_once_more_when_it_serves():
    book = Book()
    assert book.note(spec(), WAITING).write and not book.of(spec()).served
    assert not book.note(spec(), WAITING).write
    assert book.note(spec(), COMPLETE).write and book.of(spec()).served
    assert not book.note(spec(), WAITING).write, "what has served stays what it is"


def test_what_is_late_is_given_up_where_something_served_before(book):
    book.note(spec(2.0), WAITING)
    book.note(spec(2.0), LATE)

    failure = given_up(book.editions.values(), edition_hash(spec(2.0), DIGESTS), spec(2.0))
    assert failure == Failure(asked_hash(spec(2.0)), "pod x was not ready")
    assert last_good(book.editions.values(), edition_hash(spec(2.0), DIGESTS)) == book.of(spec())


def test_the_first_edition_is_never_given_up():
    book = Book()
    book.note(spec(), WAITING)
    assert not book.note(spec(), LATE).write and book.of(spec()).failure is None


def test_what_has_served_is_not_given_up_when_a_pod_is_late_later(book):
    book.note(spec(2.0), WAITING)
    book.note(spec(2.0), COMPLETE)

    assert not book.note(spec(2.0), LATE).write and book.of(spec(2.0)).failure is None


@pytest.mark.parametrize(
    ("change", "again"),
    [
        pytest.param({"replicas": 5}, False, id="an autoscaler's doing"),
        pytest.param({"rollout": {"progressTimeoutSeconds": 1800}}, True, id="more time"),
        pytest.param({"priority": 3}, True, id="any other field"),
    ],
)
def test_what_was_given_up_is_tried_again_when_something_else_is_asked_for(book, change, again):
    book.note(spec(2.0), WAITING)
    book.note(spec(2.0), LATE)
    edition = edition_hash(spec(2.0), DIGESTS)
    assert edition_hash(spec(2.0, **change), DIGESTS) == edition

    assert (given_up(book.editions.values(), edition, spec(2.0, **change)) is None) == again
    if again:
        book.note(spec(2.0, **change), WAITING)  # struck out
        book.note(spec(2.0, **change), WAITING)  # and begun anew
        assert book.of(spec(2.0)).failure is None and not book.of(spec(2.0)).served


def test_going_back_leaves_both_as_they_are(book):
    book.note(spec(2.0), WAITING)
    book.note(spec(2.0), LATE)
    before = dict(book.editions)
    retreat = Retreat(edition_hash(spec(2.0), DIGESTS), "late")

    for progress in (WAITING, LATE, COMPLETE):
        found = book.note(spec(), progress, retreat)
        assert not found.write and not found.strike
    assert book.editions == before


def test_what_is_asked_for_once_more_has_to_prove_itself_once_more(book):
    book.note(spec(2.0), WAITING)
    book.note(spec(2.0), COMPLETE)
    book.note(spec(), WAITING)
    book.note(spec(), WAITING)
    assert not book.of(spec()).served and book.of(spec()).ordinal > book.of(spec(2.0)).ordinal
    book.note(spec(), LATE)

    assert book.of(spec()).failure is not None
    assert last_good(book.editions.values(), edition_hash(spec(), DIGESTS)) == book.of(spec(2.0))


def test_few_are_kept_and_none_that_never_served(book):
    for weight in range(2, 9):
        book.note(spec(float(weight)), WAITING)
        book.note(spec(float(weight)), COMPLETE)
    for weight in (20.0, 21.0):
        book.note(spec(weight), WAITING)

    kept = sorted(book.editions.values(), key=lambda e: e.ordinal)
    assert [book.of(spec(w)) for w in (6.0, 7.0, 8.0, 21.0)] == kept


def test_suspension_wipes_the_slate(book):
    book.note(spec(2.0), WAITING)
    book.note(spec(2.0), LATE)
    book.note(spec(2.0), Progress(), suspended=True)

    assert list(book.editions.values()) == [book.of(spec())]


def test_a_plan_that_is_only_shown_leaves_no_trace():
    book = Book()
    assert not book.note(spec(), WAITING, dry=True).write


def test_what_is_restored_has_its_members_and_the_present_replicas(book):
    present = spec(2.0, replicas=4, priority=7, rollout={"strategy": "Recreate"}, devices={"kinds": ["CPU"]})
    back = EnsembleSpec.model_validate_json(restored(json.loads(book.of(spec()).content), present))

    assert back.members == spec().members and back.devices == spec().devices
    assert (back.replicas, back.priority, back.rollout) == (4, 7, present.rollout)
    assert edition_hash(back, DIGESTS) == edition_hash(spec(), DIGESTS)


def test_another_file_at_the_same_address_is_another_edition():
    assert edition_hash(spec(), DIGESTS) != edition_hash(spec(), {"a": "b" * 64})


@pytest.mark.parametrize("data", [None, {}, {"spec": {}}, {"spec": {}, "digests": 3}])
def test_a_controller_revision_that_is_not_as_we_write_it_is_passed_over(data):
    body = {"metadata": {"name": "x", "creationTimestamp": "t", "labels": {"ensembles.dev/edition": "e"}}, "data": data}
    assert record_of(REVISIONS, body) is None
