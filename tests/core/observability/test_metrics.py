"""What counts, by itself."""

import pytest

from app.core.errors import ConflictError
from app.core.observability.metrics import Counter, Histogram, counted
from tests.core.scrape import counted_so_far

ENDS = Counter("test_ends", "How the blocks of these tests end.", of=(), outcome=())


@pytest.mark.parametrize(
    ("error", "outcome"), [(None, "succeeded"), (ConflictError(), "conflict"), (ZeroDivisionError(), "failed")]
)
def test_the_end_of_a_block_is_counted_as_what_it_was(error: Exception | None, outcome: str) -> None:
    before = counted_so_far("test_ends_total", of="block")

    def work() -> None:
        with ENDS.outcome("block"):
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            work()
    else:
        work()

    assert counted_so_far("test_ends_total", of="block", outcome=outcome) == 1
    assert counted_so_far("test_ends_total", of="block") == before + 1


def test_what_is_named_beforehand_is_there_before_it_happens() -> None:
    Counter("test_announced", "Of this test.", who=("a", "b"), what=("x",))

    named = [sample.labels for family in counted() if family.name == "test_announced" for sample in family.samples]

    assert named == [{"who": "a", "what": "x"}, {"who": "b", "what": "x"}]


def test_a_size_is_counted_in_every_bucket_it_fits_in() -> None:
    sizes = Histogram("test_sizes", "Of this test.", "of", buckets=(1, 2.5))

    for size in (0.5, 1, 2, 30):
        sizes.observe(size, "things")

    assert {bound: counted_so_far("test_sizes_bucket", of="things", le=bound) for bound in ("1.0", "2.5", "+Inf")} == {
        "1.0": 2,
        "2.5": 3,
        "+Inf": 4,
    }
    assert counted_so_far("test_sizes_count", of="things") == 4
    assert counted_so_far("test_sizes_sum", of="things") == 33.5


def test_no_two_can_have_one_name() -> None:
    Histogram("test_name", "Of this test.", buckets=(1,))

    with pytest.raises(ValueError, match="test_name"):
        Histogram("test_name", "Of this test.", buckets=(1,))
