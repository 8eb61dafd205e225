"""Tables of the results: medians over the rounds, and ratios within each round."""

from collections.abc import Iterator
from statistics import median
from typing import TypedDict

from benchmarks.cases import CPU, FAILED, IMPORT, LOADED, P50, P99, RATE, START, Case, Goal, Sample

type Rounds = list[dict[str, Sample]]

# Figures that are also shown as a ratio.
_COMPARED = (RATE, P50, P99, CPU, START, IMPORT, LOADED)
_WHOLE = 100  # Larger values are shown without decimals.


class Result(TypedDict):
    """The results of a case: for each round, the figures of each contender."""

    title: str
    rounds: Rounds


def table(results: dict[str, Result], cases: list[Case]) -> str:
    """Return all results as Markdown."""
    known = {case.name: case for case in cases}
    return "\n".join(line for name, result in results.items() for line in [*_case(result, known[name].goals), ""])


def _case(result: Result, goals: tuple[Goal, ...]) -> Iterator[str]:
    rounds = result["rounds"]
    reference, *_ = contenders = list(rounds[0])
    figures = list(dict.fromkeys(figure for one in rounds[0].values() for figure in one))
    yield f"**{result['title']}** ({len(rounds)} rounds)"
    yield ""
    yield f"| | {' | '.join(figures)} |"
    yield f"|---|{'--:|' * len(figures)}"
    for contender in contenders:
        yield f"| {contender} | {' | '.join(_median(rounds, contender, figure) for figure in figures)} |"
    for contender in contenders[1:]:
        ratios = [_spread(rounds, contender, reference, figure) for figure in figures]
        yield f"| {contender} / {reference} | {' | '.join(ratios)} |"
    for goal in goals:
        yield from _verdict(rounds, goal)


def _median(rounds: Rounds, contender: str, figure: str) -> str:
    values = [one[contender][figure] for one in rounds if figure in one[contender]]
    if figure == FAILED:
        return f"{sum(values):.0f}"
    return _number(median(values)) if values else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= _WHOLE else f"{value:.2f}"


def ratios(rounds: Rounds, contender: str, reference: str, figure: str) -> list[float]:
    """Compare two contenders within each round, so that a change of the machine's speed affects both."""
    pairs = [(one[contender].get(figure), one[reference].get(figure)) for one in rounds]
    return [mine / theirs for mine, theirs in pairs if mine is not None and theirs]


def _spread(rounds: Rounds, contender: str, reference: str, figure: str) -> str:
    found = ratios(rounds, contender, reference, figure) if figure in _COMPARED else []
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})" if found else ""


def _verdict(rounds: Rounds, goal: Goal) -> Iterator[str]:
    reference, *_ = contenders = list(rounds[0])
    contender = contenders[-1]
    if goal.is_ratio and reference in {contender, "before"}:
        return
    values = (
        ratios(rounds, contender, reference, goal.figure)
        if goal.is_ratio
        else [one[contender][goal.figure] for one in rounds]
    )
    reached = median(values)
    sign = "at most" if goal.at_most else "at least"
    good = reached <= goal.bound if goal.at_most else reached >= goal.bound
    aim = f", aim {goal.aim:g}" if goal.aim is not None else ""
    what = f"{goal.figure}, {contender} / {reference}" if goal.is_ratio else goal.figure
    yield ""
    yield f"{what}: {_number(reached)}; {sign} {goal.bound:g}{aim}: {'reached' if good else '**missed**'}"


def failures(results: dict[str, Result]) -> float:
    """Count the responses that were missing or wrong."""
    return sum(
        sample.get(FAILED, 0) for result in results.values() for one in result["rounds"] for sample in one.values()
    )
