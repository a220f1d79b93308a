"""Traces of runs, received for real: the installed command sends OTLP to a collector of this process."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from engine_traces import TracedEngine
from otlp_support import Collector, Received, collector
from support import World, need_posix
from test_health import serving, until

from scenario_runner.kcl.supervisor import WORKER_CONFIG_VARIABLE
from scenario_runner.procfs import start_time
from scenario_runner.profiles.policy import load_policy
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import open_authority, open_pack
from scenario_runner.tracing import SpanName, span_id_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

CALLER = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
TRACEPARENT = f"00-{CALLER[0]}-{CALLER[1]}-03"
OF_A_READY_RUN = {
    "SR.Run", "SR.Ingress", "SR.PlanCompile", "SR.Admission", "SR.EvidenceVerify", "SR.CommitFacts", "SR.PublishReady",
}  # fmt: skip
ATTRIBUTES = {
    "sr.run_id", "sr.state", "sr.reason_code", "sr.attempt_no", "sr.outcome", "sr.disposition", "sr.message_id",
    "sr.kind", "sr.emission",
}  # fmt: skip
#: A command in whose interpreter OpenTelemetry cannot be imported, as where the extra is not installed.
WITHOUT_SDK = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from scenario_runner.cli.main import main
sys.argv[0] = "scenario-runner"
main()
"""
#: An engine that keeps the context that it was given, and fails.
KEEPS_CONTEXT = """
import os
with open("GOT", "w") as file:
    file.write(os.environ["TRACEPARENT"])
raise SystemExit(3)
"""
#: A command that prints what it imported of OpenTelemetry.
SHOWS_IMPORTS = """
import sys
from scenario_runner.cli.main import main
sys.argv[0] = "scenario-runner"
try:
    main()
finally:
    print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


@pytest.fixture(autouse=True)
def _posix(monkeypatch: pytest.MonkeyPatch) -> None:
    need_posix()
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "world")


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collector() as found:
        for name, value in found.env.items():
            monkeypatch.setenv(name, value)
        yield found


def enveloped(request: dict[str, Any], **attributes: Any) -> dict[str, Any]:
    return {
        "topic": "fp.bus.control.v1", "message_id": f"m-{request['run_equivalence_key']}", "partition_key": "p",
        "published_at_utc": "2026-01-01T00:00:00Z", "attributes": {"kind": "RUN_REQUEST", **attributes},
        "payload": request,
    }  # fmt: skip


def require_one_trace(found: Collector, run_id: str) -> list[Received]:
    """The spans of a run, after it was seen that they are one tree below the run, however many processes made them."""
    spans = [span for span in found.spans if span.trace_id == run_id]
    (root,) = {span.span_id for span in spans if span.name == "SR.Run"}
    assert root == span_id_of(run_id, SpanName.RUN)
    for span in spans:
        assert span.parent_id == ("" if span.name == "SR.Run" else root), span
        assert 0 < span.start_ns <= span.end_ns
        assert span.attributes["sr.run_id"] == run_id
        assert set(span.attributes) <= ATTRIBUTES
    return spans


def test_a_ready_run_is_one_trace_that_links_to_its_caller_and_is_named_by_its_ready(
    world: World, received: Collector
) -> None:
    world.drop(enveloped(world.make_run()["request"], traceparent=TRACEPARENT))
    assert world.serve().returncode == 0
    (ready,) = world.signals("READY")
    run_id = ready["payload"]["run_id"]
    spans = require_one_trace(received, run_id)
    assert sorted(span.name for span in spans) == sorted(OF_A_READY_RUN), "each once"
    assert len({span.span_id for span in spans}) == len(spans)
    named = {span.name: span for span in spans}
    assert named["SR.Ingress"].links == [CALLER]
    assert ready["attributes"]["traceparent"] == f"00-{run_id}-{named['SR.PublishReady'].span_id}-01"
    assert named["SR.Run"].attributes == {"sr.run_id": run_id, "sr.state": "READY"}
    assert named["SR.Admission"].attributes["sr.disposition"] == "ACCEPTED"
    assert named["SR.Ingress"].end_ns <= named["SR.Admission"].end_ns <= named["SR.EvidenceVerify"].start_ns
    assert named["SR.EvidenceVerify"].end_ns <= named["SR.CommitFacts"].start_ns
    assert named["SR.CommitFacts"].end_ns <= named["SR.PublishReady"].end_ns
    assert not any(span.failed for span in spans)
    assert {(span.resource["service.name"], span.resource["sr.role"]) for span in spans} == {("scenario-runner", "all")}


def test_a_signal_that_is_published_again_carries_the_context_of_the_first_and_is_a_span(
    world: World, received: Collector
) -> None:
    world.drop(world.make_run()["request"])
    world.serve()
    (ready,) = world.signals("READY")
    run_id = ready["payload"]["run_id"]
    done = world.command("reemit", run_id, "--wiring", str(world.wiring), "--reason", "lost downstream", "--json")
    assert done.returncode == 0, done.stderr
    (again,) = world.signals("READY_REEMIT")
    assert again["attributes"]["traceparent"] == ready["attributes"]["traceparent"]
    require_one_trace(received, run_id)
    (span,) = received.named("SR.Reemit", run_id)
    assert (span.attributes["sr.kind"], span.attributes["sr.emission"]) == ("READY_REEMIT", 1)


def test_a_trace_goes_on_after_a_crash(world: World, received: Collector) -> None:
    made = world.make_run()
    root, away = world.runs / made["request"]["engine_run_root"], world.root / "away"
    root.rename(away)
    world.drop(enveloped(made["request"], traceparent=TRACEPARENT))
    daemon = world.start()
    until(lambda: received.named("SR.EvidenceVerify"))
    os.killpg(daemon.pid, signal.SIGKILL)
    daemon.wait()
    assert not received.named("SR.Run")
    away.rename(root)
    assert world.serve().returncode == 0
    (ready,) = world.signals("READY")
    spans = require_one_trace(received, ready["payload"]["run_id"])
    assert {span.name for span in spans} == OF_A_READY_RUN
    examined = sorted(received.named("SR.EvidenceVerify"), key=lambda span: span.start_ns)
    assert [span.attributes["sr.state"] for span in examined] == ["WAITING_EVIDENCE", "READY"]
    assert len({span.resource["service.instance.id"] for span in spans}) == 2, "two processes"


def test_each_run_of_a_batch_has_its_own_spans(world: World, received: Collector) -> None:
    request = world.make_run()["request"]
    keys = [f"batch-{number}" for number in range(12)]
    for key in keys:
        world.drop(request | {"run_equivalence_key": key}, f"{key}.json")
    assert world.serve().returncode == 0
    signals = world.signals("READY")
    assert len(signals) == len(keys)
    for item in signals:
        spans = require_one_trace(received, item["payload"]["run_id"])
        assert sorted(span.name for span in spans) == sorted(OF_A_READY_RUN)
    assert len({span.span_id for span in received.spans}) == len(keys) * len(OF_A_READY_RUN)


def test_a_negative_verdict_and_a_refusal_are_seen_with_their_codes(world: World, received: Collector) -> None:
    failing = world.make_run("key-2")
    world.policy_changes["evidence_wait_seconds"] = 1
    world.write_profiles()
    request = failing["request"] | {"engine_run_root": str(world.runs / "nowhere")}
    world.drop(request, "a.json")
    refused = failing["request"] | {"run_equivalence_key": "other", "output_ids": ["no_such_output"]}
    world.drop(enveloped(refused, traceparent=TRACEPARENT), "b.json")
    with serving(world) as served:
        (run,) = until(lambda: received.named("SR.Run"))
        (admission,) = until(lambda: [span for span in received.named("SR.Admission") if span.failed])
        assert served.stop() == 0
    assert run.failed
    assert run.attributes["sr.state"] == "FAILED"
    assert run.attributes["sr.reason_code"] == "EVIDENCE_MISSING_DEADLINE"
    assert admission.attributes["sr.reason_code"] == "UNKNOWN_OUTPUT_ID"
    assert admission.parent_id == "", "there is no run that could be the parent"
    (ingress,) = received.named("SR.Ingress", admission.trace_id)
    assert ingress.links == [CALLER]


def test_an_engine_gets_the_context_of_its_attempt_also_of_one_that_fails(world: World, received: Collector) -> None:
    got = world.root / "got"
    program = world.root / "engine.py"
    program.write_text(KEEPS_CONTEXT.replace("GOT", str(got)), "utf-8")
    world.policy_changes["attempt_limit"] = 1
    command = [sys.executable, "-I", "-S", str(program)]
    world.write_profiles(engine_command=command, engine_attempts_dir=str(world.root / "attempts"))
    request = world.make_run()["request"]
    root = str(world.runs / "made-by-the-engine")
    world.drop(request | {"requested_strategy": "FORCE_INVOKE", "engine_run_root": root})
    assert world.serve().returncode == 0
    (run,) = received.named("SR.Run")
    require_one_trace(received, run.trace_id)
    (attempt,) = received.named("SR.EngineAttempt")
    assert got.read_text("utf-8") == f"00-{run.trace_id}-{attempt.span_id}-01"
    assert (attempt.failed, attempt.attributes["sr.reason_code"]) == (True, "ENGINE_EXIT_NONZERO")
    assert (run.failed, run.attributes["sr.reason_code"]) == (True, "ENGINE_EXIT_NONZERO")
    assert not received.named("SR.EvidenceVerify"), "there was nothing to verify"


def test_an_attempt_of_an_engine_is_part_of_the_trace_of_its_run(tmp_path: Path, received: Collector) -> None:
    world = World(tmp_path / "world")
    engine = TracedEngine(tmp_path / "engine", seconds=(0.0, 0.0))
    engine.wiring(world, engine_env_allowlist=["PATH"])
    world.drop(engine.request("key-1"))
    assert world.serve().returncode == 0
    (ready,) = world.signals("READY")
    run_id = ready["payload"]["run_id"]
    require_one_trace(received, run_id)
    (attempt,) = received.named("SR.EngineAttempt", run_id)
    assert attempt.span_id == span_id_of(run_id, SpanName.ENGINE_ATTEMPT, "1")
    assert (attempt.attributes["sr.attempt_no"], attempt.attributes["sr.outcome"]) == (1, "SUCCEEDED")
    assert not attempt.failed


def test_a_one_shot_run_is_traced(world: World, received: Collector) -> None:
    file = world.root / "request.json"
    file.write_text(json.dumps(world.make_run()["request"]), "utf-8")
    done = world.command("run", str(file), "--wiring", str(world.wiring), "--policy", str(world.policy), "--json")
    assert done.returncode == 0, done.stderr
    spans = require_one_trace(received, json.loads(done.stdout)["run_id"])
    assert {span.name for span in spans} == OF_A_READY_RUN
    assert {span.resource["sr.role"] for span in spans} == {"run"}


def test_a_shard_worker_of_a_stream_is_traced(world: World, received: Collector) -> None:
    wiring = load_wiring(str(world.wiring)).model_copy(update={"control_bus_stream": "bus"})
    open_authority(wiring).close()
    pack, folder = world.root / "pack.json", world.root / "status"
    pack.write_text(json.dumps(open_pack(wiring).document), "utf-8")
    folder.mkdir()
    config = {
        "wiring": wiring.model_dump_json(), "policy": load_policy(str(world.policy)).model_dump_json(),
        "pack": str(pack), "status_folder": str(folder), "generation": "g",
        "supervisor": f"{os.getpid()} {start_time(os.getpid())}",
    }  # fmt: skip
    message = enveloped(world.make_run()["request"], traceparent=TRACEPARENT)
    at = {"sequenceNumber": "1", "subSequenceNumber": 0}
    record = {
        "action": "record", "data": base64.b64encode(json.dumps(message).encode()).decode(), "partitionKey": "p",
        "approximateArrivalTimestamp": 1, **at,
    }  # fmt: skip
    said = [
        {"action": "initialize", "shardId": "shard-1", "sequenceNumber": None, "subSequenceNumber": None},
        {"action": "processRecords", "records": [record], "millisBehindLatest": 0},
        {"action": "checkpoint", "error": None, **at},
        {"action": "shutdownRequested"},
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "scenario_runner.service.shard_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, WORKER_CONFIG_VARIABLE: json.dumps(config)},
    ) as worker:  # fmt: skip
        _, errors = worker.communicate("".join(json.dumps(item) + "\n" for item in said).encode(), timeout=120)
    assert worker.returncode == 0, errors
    assert sorted(span.name for span in received.spans) == ["SR.Admission", "SR.Ingress", "SR.PlanCompile"], errors
    (ingress,) = received.named("SR.Ingress")
    assert ingress.links == [CALLER]
    assert ingress.parent_id == span_id_of(ingress.trace_id, SpanName.RUN)


@contextmanager
def silent() -> Iterator[int]:
    """The port of a collector that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("kind", ["nobody listens", "nobody answers"])
def test_a_collector_that_is_away_costs_no_run_and_its_spans_are_counted(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with silent() as port:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port if kind == 'nobody answers' else 1}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        world.drop(world.make_run()["request"])
        with serving(world) as served:
            until(lambda: world.signals("READY"))
            until(lambda: f'sr_operations_total{{operation="spans.dropped"}} {len(OF_A_READY_RUN)}.0'
                  in served.get("/metrics")[1].decode())  # fmt: skip
            assert served.stop() == 0
        assert "spans are dropped" in served.log.read_text("utf-8")
        assert "Traceback" not in served.log.read_text("utf-8")


def test_without_the_extra_runs_are_ready_and_the_log_says_what_is_missing(world: World, received: Collector) -> None:
    world.drop(world.make_run()["request"])
    arguments = ["serve", "--wiring", str(world.wiring), "--policy", str(world.policy), "--until-idle"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SDK, *arguments], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"the extra 'otel' is not installed" in done.stderr
    (ready,) = world.signals("READY")
    assert "traceparent" not in ready["attributes"]
    assert received.spans == []


def test_without_a_collector_ready_carries_the_context_of_its_request_and_so_does_what_is_published_again(
    world: World,
) -> None:
    request = world.make_run()["request"]
    world.drop(enveloped(request, traceparent=TRACEPARENT))
    assert world.serve("--role", "intake").returncode == 0
    world.drop(enveloped(request, traceparent=f"00-{'a' * 32}-{'b' * 16}-00"), "again.json")
    assert world.serve().returncode == 0, "another process, which knows of the request what is kept with its run"
    (ready,) = world.signals("READY")
    assert ready["attributes"]["traceparent"] == TRACEPARENT, "of the request that it was admitted from"
    run_id = ready["payload"]["run_id"]
    assert world.command("reemit", run_id, "--wiring", str(world.wiring), "--reason", "lost").returncode == 0
    (again,) = world.signals("READY_REEMIT")
    assert again["attributes"]["traceparent"] == TRACEPARENT


@pytest.mark.parametrize("given", [None, "x", f"00-{'0' * 32}-{'b' * 16}-01", 7])
def test_without_a_collector_and_without_a_valid_context_ready_has_none(world: World, given: object) -> None:
    attributes = {} if given is None else {"traceparent": given}
    world.drop(enveloped(world.make_run()["request"], **attributes))
    assert world.serve().returncode == 0
    (ready,) = world.signals("READY")
    assert "traceparent" not in ready["attributes"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", b"only OTLP over HTTP is served"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "secret", b"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"),
        ("OTEL_TRACES_SAMPLER", "secret", b"OTEL_TRACES_SAMPLER"),
        ("OTEL_SDK_DISABLED", "true", b""),
        ("OTEL_TRACES_EXPORTER", "none", b""),
        ("OTEL_TRACES_SAMPLER", "always_off", b"spans are recorded"),
    ],
)
def test_variables_that_turn_spans_off_or_cannot_be_used_stop_no_run(
    world: World, received: Collector, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: bytes
) -> None:
    monkeypatch.setenv(name, value)
    world.drop(world.make_run()["request"])
    done = world.serve()
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    assert b"secret" not in done.stderr
    (ready,) = world.signals("READY")
    assert ready["attributes"].get("traceparent", "-00").endswith("-00"), "nothing says that it is sampled"
    assert received.spans == []


def test_headers_are_sent_and_never_logged(world: World, received: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret,broken secret")
    world.drop(world.make_run()["request"])
    done = world.serve()
    assert done.returncode == 0, done.stderr
    assert {item.get("authorization") for item in received.headers} == {"Bearer secret"}
    assert b"secret" not in done.stderr


def test_nothing_of_opentelemetry_is_imported_where_no_collector_is_configured(world: World) -> None:
    world.drop(world.make_run()["request"])
    arguments = ["serve", "--wiring", str(world.wiring), "--policy", str(world.policy), "--until-idle"]
    done = subprocess.run(
        [sys.executable, "-c", SHOWS_IMPORTS, *arguments], capture_output=True, timeout=120, check=False
    )
    assert done.stdout.strip() == b"[]", done.stderr
    (ready,) = world.signals("READY")
    assert set(ready["attributes"]) == {"kind", "run_id", "facts_view_digest"}
