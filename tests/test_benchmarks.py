"""The benchmarks: they start the servers, check every response, and store the results."""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from benchmarks import observability, tokens
from benchmarks.cases import CPU, FAILED, RATE, Case, Goal
from benchmarks.load import LoadError, Plan, Sending, check_tools
from benchmarks.report import failures, table
from tests.conftest import ROOT

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk, the load generator, is not installed")


async def measure(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the command. Returns its exit code, its output and its error output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks", *arguments),
        cwd=ROOT,
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    return process.returncode or 0, output.decode(), errors.decode()


@needs_wrk
@pytest.mark.slow
async def test_a_short_run_measures_both_contenders_and_stores_the_figures(template_url: str, tmp_path: Path) -> None:
    file = tmp_path / "stored.json"
    short = ("--rounds", "1", "--seconds", "1", "--warm-up", "0", "--users", "100", "--json", str(file))

    code, output, errors = await measure(*short, "--only", "me-16", "refresh", DATABASE_URL=template_url)

    assert code == 0, errors
    stored = json.loads(file.read_text())
    (me,), (refresh,) = stored["me-16"]["rounds"], stored["refresh"]["rounds"]
    assert me.keys() == {"limit", "application"}
    assert all(figures[RATE] > 0 and figures[CPU] > 0 and figures[FAILED] == 0 for figures in me.values())
    assert refresh["application"][RATE] > 0
    assert "application / limit" in output


@needs_wrk
@pytest.mark.slow
async def test_the_connections_in_use_are_counted_at_each_number_of_clients() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.scaling", "--only", "law", "--seconds", "1"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()

    assert process.returncode == 0, errors.decode()
    lines = [line for line in output.decode().splitlines() if "counted" in line]
    assert [int(line.split(" ")[0]) for line in lines] == [1, 2, 4, 8, 16, 64]


@needs_wrk
@pytest.mark.parametrize(
    ("status", "body", "is_right"),
    [(200, "yes, as planned", True), (200, "something else", False), (503, "yes, as planned", False)],
)
async def test_every_response_is_checked(status: int, body: str, is_right: bool) -> None:  # Parametrized.
    response = f"HTTP/1.1 {status} Status\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(response)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        sending = Sending(port, Plan("/", "as planned"), connections=2, seconds=1)
        load = await asyncio.to_thread(sending.result)

    assert load.requests > 0
    assert load.failed == (0 if is_right else pytest.approx(load.requests, abs=2))


def test_without_wrk_the_error_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The other programs are installed.
    (tmp_path / "taskset").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(LoadError, match="apt-get install wrk"):
        check_tools()


def test_ratios_are_taken_within_a_round_and_goals_use_their_median() -> None:
    case = Case("one", "One", lambda _lab: {}, (Goal(RATE, 0.6, 0.9), Goal(RATE, 70, is_ratio=False)))
    drifting = [(100.0, 80.0), (200.0, 160.0), (50.0, 40.0)]
    rounds = [{"limit": {RATE: limit}, "application": {RATE: ours}} for limit, ours in drifting]

    text = table({"one": {"title": "One", "rounds": rounds}}, [case])

    assert "| application / limit | 0.80 (0.80 to 0.80) |" in text
    assert "0.80; at least 0.6, aim 0.9: reached" in text
    assert "80.00; at least 70: reached" in text


def test_a_wrong_response_in_any_round_is_counted() -> None:
    rounds = [{"limit": {FAILED: 0.0}, "application": {FAILED: 2.0}}, {"limit": {FAILED: 1.0}, "application": {}}]

    assert failures({"one": {"title": "One", "rounds": rounds}}) == 3


async def test_each_part_of_observability_can_be_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    measured = await observability._measure(rounds=1, requests=2)

    table = observability._table(measured)
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [f"| {name}" for name in measured]
    assert all(turn > 0 for turns in measured.values() for turn in turns)
    # Five of the contenders write a log line for each request: two requests in each of two turns.
    assert capsys.readouterr().out.count("/things/{thing_id}") == 2 * 2 * 5


def test_a_cached_token_costs_less_than_a_new_one() -> None:
    measured = tokens.measure(rounds=1)

    # Only a new token has its signature checked. A busy machine does not change that.
    assert 0 < 5 * measured["again"] < measured["the first time"]
