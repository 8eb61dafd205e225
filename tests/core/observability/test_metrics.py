"""Counters and histograms without the HTTP endpoint."""

import pytest

from app.core.errors import ConflictError
from app.core.observability.metrics import Counter, Histogram, own_families
from tests.core.scrape import counted_so_far

ENDS = Counter("test_ends", "How the blocks of these tests end.", of=(), outcome=())


@pytest.mark.parametrize(
    ("error", "outcome"), [(None, "succeeded"), (ConflictError(), "conflict"), (ZeroDivisionError(), "failed")]
)
def test_the_outcome_of_a_block_is_counted(error: Exception | None, outcome: str) -> None:
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


def test_series_with_declared_label_values_start_at_zero() -> None:
    Counter("test_announced", "Of this test.", who=("a", "b"), what=("x",))

    named = [sample.labels for family in own_families() if family.name == "test_announced" for sample in family.samples]

    assert named == [{"who": "a", "what": "x"}, {"who": "b", "what": "x"}]


def test_a_value_counts_in_every_bucket_whose_bound_it_does_not_exceed() -> None:
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


def test_two_metrics_cannot_have_the_same_name() -> None:
    Histogram("test_name", "Of this test.", buckets=(1,))

    with pytest.raises(ValueError, match="test_name"):
        Histogram("test_name", "Of this test.", buckets=(1,))
