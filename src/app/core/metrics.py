"""What is counted and measured, by name: a part counts as it logs, and how that is exposed is not its business.

Each process counts for itself. Names and labels are for good: dashboards and alerts are written against them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from app.core.attempts import once
from app.core.errors import AppError

_registry = CollectorRegistry()


class Tally:
    """Counts what happens, by labels. Their values must come from the code, never from a request: each is kept for ever.

    Where the values are named beforehand their series are there from the start, so that the first event shows as one.
    """

    def __init__(self, name: str, meaning: str, **labels: Iterable[str]) -> None:
        # `labels()` alone takes longer than counting.
        self._series = cache(Counter(name, meaning, tuple(labels), registry=_registry).labels)
        for values in product(*labels.values()):
            self._series(*values)

    def count(self, *values: str) -> None:
        """Count one, by the values of the labels in the order of their declaration; work done again is counted once."""
        once(self._series(*values).inc)

    @contextmanager
    def outcome(self, *values: str) -> Iterator[None]:
        """Count how the block ends: `succeeded`, the code of the error that the client is told, or `failed`."""
        try:
            yield
        except AppError as error:
            self.count(*values, error.code)
            raise
        except Exception:
            self.count(*values, "failed")
            raise
        self.count(*values, "succeeded")


class Distribution:
    """How often which size occurs, by labels; for their values the same holds."""

    def __init__(self, name: str, meaning: str, *labels: str, buckets: Sequence[float]) -> None:
        self._series = cache(Histogram(name, meaning, labels, buckets=buckets, registry=_registry).labels)

    def observe(self, size: float, *values: str) -> None:
        """Note one, by the values of the labels in the order of their declaration."""
        self._series(*values).observe(size)


class Level:
    """How many of something there are at the moment; whoever adds one takes it away again."""

    def __init__(self, name: str, meaning: str) -> None:
        self.value = 0
        Gauge(name, meaning, registry=_registry).set_function(lambda: self.value)


@dataclass(frozen=True, slots=True)
class Reading:
    """What an instrument shows at the moment it is looked at."""

    name: str
    meaning: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


type Instrument = Callable[[], Iterable[Reading]]


def counted() -> Iterator[Metric]:
    """Give everything that has been counted in this process."""
    for family in _registry.collect():
        # When a series began is of no use to a rate, and doubles their number.
        family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        yield family


def as_families(readings: Iterable[Reading]) -> Iterable[Metric]:
    """Give readings the form of what has been counted."""
    families: dict[str, Metric] = {}
    for reading in readings:
        family = families.setdefault(reading.name, GaugeMetricFamily(reading.name, reading.meaning))
        family.add_sample(reading.name, dict(reading.labels), reading.value)
    return families.values()
