"""`python -m benchmarks`: measure the application against the limit, print a table, and store the results as JSON."""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import environ
from pathlib import Path

from app.dev.postgres.cluster import Cluster, EmbeddedPostgresError
from benchmarks.cases import Case, cases
from benchmarks.lab import Lab
from benchmarks.load import LoadError, check_tools
from benchmarks.report import Result, Rounds, failures, table
from benchmarks.servers import ROOT, split_cores


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="CASE", help="measure only these cases")
    parser.add_argument("--list", action="store_true", help="list the cases, and measure nothing")
    parser.add_argument("--table", action="store_true", help="print the stored results, and measure nothing")
    parser.add_argument("--rounds", type=int, default=5, help="number of turns of each contender")
    parser.add_argument("--seconds", type=float, default=8, help="length of a turn, in whole seconds")
    parser.add_argument("--warm-up", type=float, default=1, help="length of a first turn that does not count")
    parser.add_argument("--users", type=int, default=10_000, help="accounts in the database of most cases")
    parser.add_argument("--rows", type=int, default=1_000_000, help="accounts in the database of the case `pages`")
    parser.add_argument("--requests", type=int, default=200_000, help="requests of the case `growth`")
    parser.add_argument("--against", type=Path, help="another checkout to compare with, instead of the limit")
    parser.add_argument(
        "--json",
        type=Path,
        default=ROOT / ".local" / "benchmark.json",
        help="file in which the results are stored, by case",
    )
    return parser.parse_args()


def main() -> int:
    """Run the command. The exit code is 1 if a response was missing or wrong."""
    options = _options()
    known = cases(options.requests)
    if options.list:
        print("\n".join(f"{case.name:16}{case.title}" for case in known))
        return 0
    stored: dict[str, Result] = json.loads(options.json.read_text()) if options.json.exists() else {}
    if options.table:
        print(table({case.name: stored[case.name] for case in known if case.name in stored}, known))
        return 0
    chosen = [case for case in known if case.name in (options.only or [each.name for each in known])]
    results = _measure(options, chosen)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(stored | results, indent=1))
    print(table(results, known))
    if wrong := failures(results):
        print(f"{wrong:.0f} responses were missing or wrong", file=sys.stderr)
    return int(wrong > 0)


def _measure(options: argparse.Namespace, chosen: list[Case]) -> dict[str, Result]:
    check_tools()
    cores = split_cores()
    with (
        _postgres(environ) as url,
        Lab(url, cores, users=options.users, rows=options.rows, against=options.against) as lab,
    ):
        return {case.name: _run(case, lab, options) for case in chosen}


def _run(case: Case, lab: Lab, options: argparse.Namespace) -> Result:
    contenders = case.contenders(lab)
    print(case.title, file=sys.stderr)
    if options.warm_up:
        for turn in contenders.values():
            turn(options.warm_up)
    # The contenders take turns, so that a change of the machine's speed affects all of them.
    measured: Rounds = [
        {name: turn(options.seconds) for name, turn in contenders.items()} for _ in range(options.rounds)
    ]
    return {"title": case.title, "rounds": measured}


@contextmanager
def _postgres(environment: Mapping[str, str]) -> Iterator[str]:
    """Return the URL of a PostgreSQL server: `DATABASE_URL`, or a private server with default settings, which are durable."""
    if url := environment.get("DATABASE_URL"):
        yield url
        return
    with tempfile.TemporaryDirectory() as directory, Cluster(Path(directory)) as cluster:
        yield cluster.url()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (LoadError, EmbeddedPostgresError) as error:
        sys.exit(f"benchmarks: {error}")
