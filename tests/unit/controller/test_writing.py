import asyncio

import pytest

from ensemble_operator.controller.cache import Cache
from ensemble_operator.controller.resources import PODS
from ensemble_operator.controller.writing import Writer

LEAVES = {"name": "p", "namespace": "n", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"}


class Answers:
    def __init__(self, answer):
        self.answer = answer

    async def delete(self, *_, **__):
        return self.answer


@pytest.mark.parametrize(
    ("answer", "there"),
    [
        pytest.param(
            {"metadata": LEAVES | {"resourceVersion": "2"}, "said": "it leaves"}, "it leaves", id="takes time"
        ),
        pytest.param({"metadata": LEAVES}, None, id="was on its way, and is gone at once"),
        pytest.param({"kind": "Status"}, None, id="gone"),
        pytest.param(None, None, id="was gone before"),
    ],
)
def test_what_the_answer_to_a_deletion_says_is_known_at_once(answer, there):
    cache = Cache(lambda _, body: body["said"])
    cache.observe(PODS, {"metadata": LEAVES | {"resourceVersion": "1"}, "said": "it is here"})
    writer = Writer(Answers(answer), cache, lambda: None)

    asyncio.run(writer.delete(PODS, "n", "p", "u"))

    assert cache.all(PODS).get(("n", "p")) == there
