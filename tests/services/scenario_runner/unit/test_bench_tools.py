"""The pure parts of the benches: statistics, comparisons, reports, what is measured, and where."""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
from support import REPO

from sr_tools import arguments
from sr_tools.bench import harness
from sr_tools.bench.comparison import compare, comparison_table
from sr_tools.bench.daemon import Daemon, Usage
from sr_tools.bench.harness import Bench, add_arguments
from sr_tools.bench.on_files.small_runs import rate_per_tenth
from sr_tools.bench.on_files.soak import soak_results
from sr_tools.bench.on_files.soak_faults import Fault, cause, faults
from sr_tools.bench.on_files.telemetry import Taken, telemetry_results
from sr_tools.bench.on_parity.outage import Outage, outage_results
from sr_tools.bench.on_parity.place import Place, UnsetError
from sr_tools.bench.on_parity.streaming import RANGE, ranges_of
from sr_tools.bench.processes import Sample, Sampler, Trend, sample
from sr_tools.bench.report import CheckFailedError, at_rank, result, results_table, table
from sr_tools.bench.scraper import plain_values
from sr_tools.bench.subject import Subject, other_checkout
from sr_tools.bench.world import rates, run_id_of, steady_seconds
from sr_tools.waiting import LateError, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit
PLACE = {"SR_TEST_S3_BUCKET": "bucket", "SR_TEST_PG_DSN": "postgresql://localhost/db"}


def entry(name: str, value: float, subject: str, number: int, **more: Any) -> dict[str, Any]:
    return result(name, value, "runs/s", ">= 1", "how", met=True, **more) | {"subject": subject, "round": number}


# --- statistics -----------------------------------------------------------------------------------------------------


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert at_rank([3, 1, 2], 0.5) == 2
    assert at_rank(range(100), 0.99) == 99
    assert at_rank([7], 0.99) == 7


def test_a_steady_rate_counts_from_the_first_admission_to_the_last_ready() -> None:
    times = [(2_000_000, 3_000_000), (1_000_000, 5_000_000)]
    assert steady_seconds(times) == 4.0
    found = rates(times, Usage(wall=8.0, cpu=1.0, peak_rss=5_000_000), 2)
    assert (found["steady_runs_per_second"], found["wall_runs_per_second"]) == (0.5, 0.2)
    assert (found["cpu_ms_per_run"], found["peak_rss_mb"]) == (500.0, 5.0)


def test_the_rate_of_each_tenth_shows_a_fall() -> None:
    steady = [(0, (number + 1) * 1000) for number in range(100)]
    assert rate_per_tenth(steady) == [1000.0] * 10
    slower = [*steady[:90], *((0, 90_000 + (number + 1) * 2000) for number in range(10))]
    assert rate_per_tenth(slower)[-1] == 500.0


def test_ranges_cover_every_byte_once() -> None:
    sizes = {"a": 2 * RANGE + 1, "b": 5, "empty": 0}
    assert ranges_of(sizes) == [("a", 0, RANGE), ("a", RANGE, 2 * RANGE), ("a", 2 * RANGE, 2 * RANGE + 1), ("b", 0, 5)]


# --- rounds and comparisons -----------------------------------------------------------------------------------------


def test_two_checkouts_are_compared_round_by_round() -> None:
    results = [
        entry("x", 20, "other", 1),
        entry("x", 10, "this", 0, cpu=4.0, runs=5),
        entry("x", 20, "other", 0, cpu=2.0, runs=5),
        entry("x", 30, "this", 1),
        entry("x", 40, "this", 2),
        entry("x", 20, "other", 2),
    ]
    value, cpu = compare(results)
    assert (value["name"], value["unit"], value["ratio"], value["ratios"]) == ("x", "runs/s", 1.5, [0.5, 1.5, 2.0])
    assert value["median"] == {"this": 30, "other": 20}
    assert (value["min"]["this"], value["max"]["this"]) == (10, 40)
    assert (cpu["name"], cpu["ratio"]) == ("x cpu", 2.0)
    assert "1.5" in comparison_table([value, cpu]).splitlines()[1]


def test_rounds_of_one_checkout_have_no_ratio() -> None:
    (found,) = compare([entry("x", value, "this", number) for number, value in enumerate((1.0, 2.0, 4.0))])
    assert found["median"] == {"this": 2.0}
    assert "ratio" not in found
    assert "2 (1 to 4)" in comparison_table([found])


def test_a_failed_round_and_a_zero_are_no_figures_to_divide_by() -> None:
    failed = {"name": "x", "value": None, "met": False, "error": "no", "subject": "this", "round": 0}
    (found,) = compare([failed, entry("x", 0, "other", 0), entry("x", 1, "this", 1), entry("x", 0, "other", 1)])
    assert "ratio" not in found


def test_checkouts_take_turns_and_who_is_first_alternates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = []

    def measurement(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
        taken.append(options.subject.name)
        folder.mkdir()
        return [result("x", len(taken), "s", "none", "how", met=True)]

    parser = argparse.ArgumentParser()
    add_arguments(parser, ["x"])
    options = parser.parse_args(["--against", str(REPO), "--dir", str(tmp_path), "--json", str(tmp_path / "report")])
    assert harness.run(Bench("bench", {"x": measurement}, ()), options) == 0
    assert taken == ["this", "other", "other", "this", "this", "other"]
    assert (tmp_path / "report").read_text() == capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_what_is_no_checkout_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, [])
    assert harness.run(Bench("bench", {}, ()), parser.parse_args(["--against", str(tmp_path)])) == 2
    assert "no checkout of Scenario Runner" in capsys.readouterr().err


def test_another_checkout_without_an_environment_lends_its_sources(tmp_path: Path) -> None:
    (tmp_path / "daemon/scenario_runner").mkdir(parents=True)
    lent = other_checkout(tmp_path, "/bin/sr")
    assert (lent.command, lent.environment()["PYTHONPATH"]) == ("/bin/sr", str(tmp_path / "daemon"))
    assert lent.pack.is_relative_to(tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/scenario-runner").touch()
    own = other_checkout(tmp_path, "/bin/sr")
    assert own.command == str(tmp_path / ".venv/bin/scenario-runner")
    assert own.sources == ""


def test_sources_of_another_checkout_go_before_the_installed_package(tmp_path: Path) -> None:
    package = tmp_path / "daemon/scenario_runner"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("print('from the other checkout')")
    environment = other_checkout(tmp_path, sys.executable).environment()
    done = subprocess.run([sys.executable, "-c", "import scenario_runner"], env=environment, capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert done.stdout == "from the other checkout\n"


def test_what_is_measured_keeps_its_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "PYTHONDONTWRITEBYTECODE" not in Subject("this", sys.executable).environment()


# --- reports --------------------------------------------------------------------------------------------------------


def test_a_table_lines_up_and_names_what_failed() -> None:
    assert table([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc  d"
    shown = results_table([
        result("x", 1.5, "s", "<= 1", "how", met=False, reference={"value": 2.0, "unit": "s"}),
        {"name": "y", "value": None, "met": False, "error": "why"},
    ])  # fmt: skip
    assert [line.split() for line in shown.splitlines()[1:]] == [
        ["x", "1.5", "s", "<=", "1", "NO", "2", "s"],
        ["y", "FAILED", "no"],
    ]


def test_an_outage_during_which_runs_were_admitted_is_no_outage() -> None:
    away, usage = Outage(cut_us=10_000_000, back_us=20_000_000), Usage(1.0, 1.0, 1)
    before, after = (9_000_000, 9_100_000), (21_000_000, 22_000_000)
    lost, admission, ready = outage_results(away, [before, after], 3, usage)
    assert (lost["value"], lost["met"]) == (1, False)
    assert (admission["value"], ready["value"]) == (1.0, 2.0)
    with pytest.raises(CheckFailedError, match="no outage"):
        outage_results(away, [before, (15_000_000, 21_000_000), after], 3, usage)


# --- soaks and telemetry --------------------------------------------------------------------------------------------


def held(rss: int, files: int = 20, children_rss: int = 0) -> Sample:
    return Sample(rss=rss, anonymous=rss // 2, files=files, threads=9, children=int(children_rss > 0),
                  children_rss=children_rss)  # fmt: skip


def test_a_trend_leaves_out_the_warm_up_and_is_not_moved_by_one_peak() -> None:
    trend = Trend.of([1, 1, 50, 50, 60, 60, 60, 60, 50, 900, 50])
    assert (trend.early, trend.late, trend.growth) == (50, 50, 0)
    assert Trend.of([0, 100, 0, 0, 104]).growth == pytest.approx(4)
    assert Trend.of([0, 0, 0, 0, 0]).growth == 0
    assert Trend.of([0, 0, 0, 0, 1]).growth == 100
    with pytest.raises(ValueError, match="at least 5"):
        Trend.of([1, 2, 3, 4])


def test_memory_that_grows_does_not_meet_the_target_also_when_it_is_that_of_children() -> None:
    grown = [held(100_000_000 + number * 1_000_000) for number in range(10)]
    rss, files, threads = soak_results(grown, "how", {"scrapes": 3})
    assert (rss["met"], rss["mb_by_fifth"], rss["scrapes"]) == (False, [100.5, 102.5, 104.5, 106.5, 108.5], 3)
    assert (files["value"], threads["value"]) == (0, 0)
    flat = [held(100_000_000, files=20 + number, children_rss=1000 * (number + 1)) for number in range(10)]
    rss, children, files, _ = soak_results(flat, "how", {})
    assert (rss["met"], children["name"], children["met"]) == (True, "soak_children_rss", False)
    assert (files["value"], files["most"]) == (6, 29)


def test_what_a_process_holds_is_read_and_its_end_ends_the_samples() -> None:
    waits = [sys.executable, "-c", "print(); input()"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()  # it runs
        own, other = sample(os.getpid()), sample(child.pid)
        with Sampler(child.pid, 0.01) as sampler:
            until(lambda: len(sampler.samples) > 2, "samples", pause=0.01)
        child.communicate(b"\n")
    assert own.children >= 1
    assert own.children_rss >= other.rss > 1_000_000
    assert (other.threads, other.children) == (1, 0)
    assert own.files > 0
    with pytest.raises(OSError, match="No such"):
        sample(child.pid)


def test_faults_happen_in_turn_and_each_at_least_once_in_a_short_soak() -> None:
    lasted: list[tuple[str, float]] = []
    each = [Fault(name, 60, lambda seconds, name=name: lasted.append((name, seconds))) for name in ("a", "b", "c")]
    assert cause(each, 0.4, Event()) == {"a": 1, "b": 1, "c": 1}
    assert [name for name, _ in lasted] == ["a", "b", "c"]
    assert all(seconds == pytest.approx(0.04) for _, seconds in lasted)
    over = Event()
    over.set()
    assert not cause(each, 0.4, over)


def test_what_a_fault_takes_away_it_puts_back(tmp_path: Path) -> None:
    store, spool, database = tmp_path / "store", tmp_path / "spool", tmp_path / "authority.db"
    for folder in (store, spool):
        (folder / "inside").mkdir(parents=True)
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE t (n)")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        for fault in faults(store, spool, database, child.pid, port=0)[:4]:
            fault.happen(0.01)
        child.communicate(b"\n")
    assert child.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["authority.db", "spool", "store"]
    with closing(sqlite3.connect(database, timeout=0)) as connection:
        connection.execute("INSERT INTO t VALUES (1)")


def test_a_folder_that_was_made_anew_while_it_was_away_is_an_error(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "inside").mkdir(parents=True)
    away = faults(store, store, store, 0, 0)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", lambda _: (store / "anew").mkdir(parents=True))
        with pytest.raises(OSError, match="not empty"):
            away.happen(1)


def test_telemetry_costs_what_the_watched_daemons_are_slower_and_dearer() -> None:
    taken = {False: [Taken(100, 0.002), Taken(200, 0.004)], True: [Taken(147, 0.003), Taken(147, 0.0033)]}
    throughput, cpu = telemetry_results(taken, "how: ")
    assert (throughput["value"], throughput["met"]) == (2, True)
    assert (cpu["value"], cpu["met"], cpu["on_ms_per_run"]) == (5, False, 3.15)


# --- places, processes, arguments -----------------------------------------------------------------------------------


def test_a_place_needs_a_bucket_and_a_database() -> None:
    for missing in PLACE:
        with pytest.raises(UnsetError, match=missing):
            Place.from_environment({name: value for name, value in PLACE.items() if name != missing})


@pytest.mark.parametrize(
    ("endpoint", "style", "by_path"),
    [("", "", False), ("http://localhost:9000", "", True), ("http://s3", "false", False), ("", "true", True)],
)
def test_an_endpoint_is_addressed_by_path_unless_said_otherwise(endpoint: str, style: str, by_path: bool) -> None:
    env = {**PLACE, "SR_TEST_S3_ENDPOINT_URL": endpoint, "SR_TEST_S3_PATH_STYLE": style}
    assert Place.from_environment(env).path_style is by_path


def test_two_benches_never_share_a_prefix() -> None:
    one, two = (Place.from_environment({**PLACE, "SR_TEST_S3_PREFIX": "/tests/"}) for _ in range(2))
    assert one.prefix != two.prefix
    assert one.prefix.startswith("tests/bench-")


def test_a_daemon_that_ends_fails_whoever_waits_for_it(tmp_path: Path) -> None:
    subject = Subject("this", sys.executable)
    with Daemon(subject, ["-c", "print('out of order')"], tmp_path / "log", 60) as daemon:
        with pytest.raises(CheckFailedError, match="nothing; the log ends with: out of order"):
            daemon.until(lambda: False, "nothing")
        assert daemon.finish().wall > 0
    failing = Daemon(subject, ["-c", "raise SystemExit(3)"], tmp_path / "log", 60)
    with failing, pytest.raises(CheckFailedError, match="ended with 3"):
        failing.finish()


def test_a_daemon_that_is_stuck_is_killed(tmp_path: Path) -> None:
    stuck = Daemon(Subject("this", sys.executable), ["-c", "import time; time.sleep(600)"], tmp_path / "log", 0.2)
    with stuck, pytest.raises(CheckFailedError, match="ended with -9"):
        stuck.finish()


def test_waiting_ends_with_the_answer_or_too_late() -> None:
    answers = iter([0, 0, 7])
    assert until(lambda: next(answers), "seven", pause=0) == 7
    with pytest.raises(LateError, match="never"):
        until(lambda: 0, "never", seconds=0.01, pause=0)


def test_run_ids_are_those_of_the_contract() -> None:
    from scenario_runner.contracts import ids

    assert run_id_of("some key") == ids.run_id_of("some key")


@pytest.mark.parametrize(("text", "size"), [("4096", 4096), ("64K", 65536), ("2M", 2 << 20), ("1G", 1 << 30)])
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert arguments.parse_size(text) == size


@pytest.mark.parametrize(
    ("kind", "text"),
    [("parse_size", "1T"), ("parse_size", "-1"), ("at_least_one", "0"), ("positive", "0"), ("not_negative", "-1"),
     ("positive", "nan")],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(kind: str, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        getattr(arguments, kind)(text)


@pytest.mark.parametrize("path", sorted((REPO / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_every_command_says_how_it_is_used_from_any_folder(path: Path, tmp_path: Path) -> None:
    if path.name == "localstack_narrative.py":
        done = subprocess.run([sys.executable, path], input=b"Ready.\n", cwd=tmp_path, capture_output=True, check=True)
        assert done.stdout == b"LocalStack is ready.\n"
        return
    done = subprocess.run([sys.executable, path, "--help"], cwd=tmp_path, capture_output=True, check=True)
    assert path.name.encode() in done.stdout


def test_values_without_labels_are_read_from_an_exposition() -> None:
    text = '# TYPE sr_runs_waiting gauge\nsr_runs_waiting 400.0\nsr_build_info{role="all"} 1.0\n\nsr_x_total 2e3\n'
    assert plain_values(text) == {"sr_runs_waiting": 400.0, "sr_x_total": 2000.0}
