"""What an examination of the evidence costs, what it may be shared by, and what it notices when it is repeated."""

import hashlib
import os
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog.testing
from support import ForkedWorld

from scenario_runner.artifacts.base import SequenceDigest
from scenario_runner.artifacts.budget import BATCH_SHARE, UNLIMITED, ReadBudget, ReadBudgetExceeded, Share
from scenario_runner.artifacts.local import LocalArtifacts, LocalRunRoot
from scenario_runner.artifacts.reuse import DigestReuse
from scenario_runner.contracts.errors import EvidenceChanged, EvidenceMissing, EvidenceRefused, Unavailable
from scenario_runner.contracts.plan import DEFAULT_BOUNDS, EvidenceBounds
from scenario_runner.evidence import examiner as examiner_module
from scenario_runner.evidence import gate_reader
from scenario_runner.evidence.cache import EvidenceBusyError, EvidenceCache
from scenario_runner.evidence.examiner import Examiner
from scenario_runner.evidence.findings import Outcome
from scenario_runner.evidence.gate_reader import read_gate
from scenario_runner.evidence.key import EvidenceKey, evidence_key
from scenario_runner.evidence.parse_turns import parse_in_turn
from scenario_runner.profiles.wiring import load_wiring
from scenario_runner.service.compose import open_pack

pytestmark = pytest.mark.integration

TOKENS = ("manifest_fingerprint", "parameter_hash", "seed", "scenario_id", "run_id")
KEY = EvidenceKey("/run", "d", (), (), (), DEFAULT_BOUNDS)
OTHER_KEY = replace(KEY, root="/another")


@pytest.mark.parametrize("what", ["a folder", "a link", "nothing"])
def test_whatever_stands_in_the_place_of_a_file_that_was_read_is_a_change(tmp_path: Path, what: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    file = run / "flag"
    file.write_bytes(b"x")
    artifacts = LocalArtifacts([str(tmp_path)], 1, None)
    root = artifacts.open(str(run), ReadBudget())
    assert root.read("flag", 10) == b"x"
    snapshot = root.snapshot()
    root.confirm(snapshot)
    file.unlink()
    if what == "a folder":
        file.mkdir()
    elif what == "a link":
        file.symlink_to("elsewhere")
    with pytest.raises(EvidenceChanged):
        root.confirm(snapshot)
    root.close()
    artifacts.close()


def test_a_batch_does_not_wait_for_an_examination_in_progress_and_a_patient_one_does() -> None:
    cache = EvidenceCache()
    with cache.exclusive(KEY, ReadBudget()):
        with pytest.raises(EvidenceBusyError), cache.exclusive(KEY, ReadBudget(share=BATCH_SHARE)):
            pass
        with cache.exclusive(OTHER_KEY, ReadBudget(share=BATCH_SHARE)):
            pass
        pool = ThreadPoolExecutor(1)
        waiting = pool.submit(_hold, cache)
        time.sleep(0.05)
        assert not waiting.done()
    assert waiting.result(10) == "held"
    pool.shutdown()
    with cache.exclusive(KEY, ReadBudget(share=BATCH_SHARE)):
        pass


def _hold(cache: EvidenceCache) -> str:
    with cache.exclusive(KEY, ReadBudget()):
        return "held"


# --- what an examination of files costs


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was just written counts as written long ago."""
    monkeypatch.setattr("scenario_runner.artifacts.reuse.RACY_NS", -60_000_000_000)


@dataclass
class Opener:
    """Opens the run root ``run`` of a folder with budgets of the test's."""

    folder: Path
    artifacts: LocalArtifacts

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def __call__(self, budget: ReadBudget | None = None, run: str = "run") -> LocalRunRoot:
        return self.artifacts.open(str(self.folder / run), budget or ReadBudget())


@pytest.fixture
def opener(tmp_path: Path) -> Iterator[Opener]:
    made = Opener(tmp_path, LocalArtifacts([str(tmp_path)], 2, DigestReuse()))
    made.run.mkdir()
    yield made
    made.artifacts.close()


SMALL = Share(hash_bytes=1000, operations=200, document_bytes=1000, patient=False)


def test_every_kind_of_cost_is_charged(opener: Opener) -> None:
    (opener.run / "many").mkdir()
    for number in range(150):
        (opener.run / "many" / str(number)).touch()
    (opener.run / "large").write_bytes(b"x" * 1001)
    files = [f"many/{number}" for number in range(150)]
    for costly in (
        lambda root: root.files_under("many") and root.digest([files]),
        lambda root: [root.kind(path) for path in files * 2],
        lambda root: root.size(files) or root.digest([files]),
        lambda root: root.read("large", 5000),
        lambda root: root.derive("large", 5000, "length", lambda data: str(len(data))),
        lambda root: root.digest([["large"]]),
    ):
        root = opener(ReadBudget(share=SMALL))
        with pytest.raises(ReadBudgetExceeded):
            costly(root)
        root.close()
        costly(opener())


def test_known_digests_and_derived_texts_cost_nothing_a_second_time(opener: Opener, settled: None) -> None:
    (opener.run / "large").write_bytes(b"x" * 1001)
    first = opener()
    assert first.derive("large", 5000, "length", lambda data: str(len(data))) == "1001"
    (digest,) = first.digest([["large"]])
    first.close()
    again = opener(ReadBudget(share=SMALL))
    assert again.derive("large", 5000, "length", lambda _data: "derived again") == "1001"
    assert again.digest([["large"]]) == [digest]
    again.close()


def test_what_is_derived_from_a_file_that_just_changed_is_not_kept(opener: Opener) -> None:
    (opener.run / "file").write_bytes(b"x")
    for answer in ("first", "second"):
        root = opener()
        assert root.derive("file", 10, "name", lambda _data, answer=answer: answer) == answer
        root.close()


def test_the_size_of_files_is_known_without_reading_them_and_what_is_not_there_counts_as_none(opener: Opener) -> None:
    with (opener.run / "sparse").open("wb") as file:
        file.truncate(15 << 40)
    (opener.run / "small").write_bytes(b"123")
    (opener.run / "link").symlink_to("small")
    root = opener()
    assert root.size(["sparse", "small", "link", "missing"]) == (15 << 40) + 3
    root.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_digest_that_was_broken_off_goes_on_where_it_was(opener: Opener, settled: None, threads: int) -> None:
    data = os.urandom(1 << 20) * 12
    for name in ("a", "b")[:threads]:
        (opener.run / name).write_bytes(data)
    read = 0

    def break_off_after_a_while(hashed: int) -> None:
        nonlocal read
        read += hashed
        if read >= 8 << 20:
            raise ReadBudgetExceeded("the turn is over")

    sequences = [[name] for name in ("a", "b")[:threads]]
    root = opener(ReadBudget(break_off_after_a_while))
    with pytest.raises(ReadBudgetExceeded):
        root.digest(sequences)
    root.close()
    hashed: list[int] = []
    root = opener(ReadBudget(hashed.append))
    assert [item.sha256 for item in digests(root, sequences)] == [hashlib.sha256(data).hexdigest()] * threads
    assert sum(hashed) + read <= (threads * len(data)) + (1 << 20), "most of it was not read again"
    root.close()


def test_a_digest_that_was_broken_off_is_not_gone_on_with_when_the_file_changed(opener: Opener, settled: None) -> None:
    file = opener.run / "a"
    file.write_bytes(b"x" * (8 << 20))

    def break_off(hashed: int) -> None:
        if hashed:
            raise ReadBudgetExceeded("the turn is over")

    root = opener(ReadBudget(break_off))
    with pytest.raises(ReadBudgetExceeded):
        root.digest([["a"]])
    root.close()
    file.write_bytes(b"y" * (8 << 20))
    root = opener()
    assert digests(root, [["a"]])[0].sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    root.close()


def test_a_file_that_had_just_changed_when_its_digest_was_broken_off_is_read_from_the_start(opener: Opener) -> None:
    (opener.run / "a").write_bytes(b"x" * (8 << 20))

    def break_off(hashed: int) -> None:
        if hashed:
            raise ReadBudgetExceeded("the turn is over")

    root = opener(ReadBudget(break_off))
    with pytest.raises(ReadBudgetExceeded):
        root.digest([["a"]])
    root.close()
    hashed: list[int] = []
    root = opener(ReadBudget(hashed.append))
    root.digest([["a"]])
    assert sum(hashed) == 8 << 20
    root.close()


def test_files_that_are_hashed_at_the_same_time_all_end_when_one_of_them_does(opener: Opener) -> None:
    for name in ("a", "b"):
        with (opener.run / name).open("wb") as file:
            file.truncate(8 << 30)
    hashed: list[int] = []

    def break_off_once(count: int) -> None:
        hashed.append(count)
        if sum(hashed) == 64 << 20:
            raise Unavailable("one of them cannot be read")

    root = opener(ReadBudget(break_off_once))
    with pytest.raises(Unavailable):
        root.digest([["a"], ["b"]])
    root.close()
    assert sum(hashed) < 1 << 30, "the other file was read to its end"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hash")]


def digests(root: LocalRunRoot, sequences: list[list[str]]) -> list[SequenceDigest]:
    found = root.digest(sequences)
    assert all(isinstance(item, SequenceDigest) for item in found)
    return [item for item in found if isinstance(item, SequenceDigest)]


# --- what a profile forbids, or a mount that is gone, says nothing about the evidence


@pytest.mark.parametrize("place", ["/elsewhere/run", "s3://bucket/run", "{folder}x/run"])
def test_a_root_that_the_profile_does_not_allow_is_waited_for(opener: Opener, place: str) -> None:
    with pytest.raises(Unavailable, match="engine_roots"):
        opener.artifacts.open(place.format(folder=opener.folder), ReadBudget())


def test_an_allowed_root_that_is_not_there_is_waited_for_and_a_run_below_one_that_is_there_is_missing(
    tmp_path: Path,
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    artifacts = LocalArtifacts([str(tmp_path / name) for name in ("gone", "there", "file")], 1, None)
    for name in ("gone", "file"):
        with pytest.raises(Unavailable, match=f"the engine root .*{name} cannot be opened"):
            artifacts.open(str(tmp_path / name / "run"), ReadBudget())
    with pytest.raises(EvidenceMissing):
        artifacts.open(str(tmp_path / "there/run"), ReadBudget())
    artifacts.close()


def test_a_link_below_an_allowed_root_is_refused_evidence(opener: Opener) -> None:
    (opener.folder / "link").symlink_to(opener.run)
    with pytest.raises(EvidenceRefused, match="a symbolic link"):
        opener(run="link")


# --- the bounds under which a run was admitted


def test_a_finding_under_other_bounds_is_not_used_again(tmp_path: Path, settled: None) -> None:
    world = ForkedWorld(tmp_path / "world")
    made = world.make_run("shared", outputs=["outlet_catalogue"])
    pack = open_pack(load_wiring(str(world.wiring)))
    tokens = {name: str(made[name]) for name in TOKENS}
    artifacts = LocalArtifacts([str(world.runs)], 1, None)
    packs: Any = SimpleNamespace(get=lambda _digest: pack)
    examiner = Examiner(artifacts, packs, EvidenceCache(), time.sleep)
    found = []
    for files in (100, 1, 100):
        bounds = EvidenceBounds(max_output_files=files)
        key = evidence_key(made["engine_run_root"], pack, tokens, made["gate_ids"], made["output_ids"], bounds)
        found.append(examiner.examine(key, lambda: None, UNLIMITED).outcome)
    artifacts.close()
    assert found == [Outcome.PASS, Outcome.CONFLICT, Outcome.PASS]


# --- what a long examination logs


def test_a_long_examination_logs_the_bytes_that_it_has_hashed_of_those_that_it_will(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examiner_module, "LOG_HASHING_SECONDS", 0.0)
    world = ForkedWorld(tmp_path / "world")
    made = world.make_run("long", outputs=["outlet_catalogue"])
    pack = open_pack(load_wiring(str(world.wiring)))
    tokens = {name: str(made[name]) for name in TOKENS}
    artifacts = LocalArtifacts([str(world.runs)], 1, None)
    packs: Any = SimpleNamespace(get=lambda _digest: pack)
    examiner = Examiner(artifacts, packs, None, time.sleep)
    key = evidence_key(made["engine_run_root"], pack, tokens, made["gate_ids"], made["output_ids"], EvidenceBounds())
    with structlog.testing.capture_logs() as lines:
        assert examiner.examine(key, lambda: None, UNLIMITED, "the run").outcome is Outcome.PASS
        long = len(lines)
        examiner.examine(key, lambda: None, BATCH_SHARE, "the run")
    assert len(lines) == long > 1, "an examination in a batch logs nothing"
    assert {(line["event"], line["run_id"]) for line in lines} == {("hashing", "the run")}
    done = [line["bytes_done"] for line in lines]
    assert done == sorted(done)
    assert 0 < done[-1] == lines[-1]["bytes_total"]
    artifacts.close()


# --- large documents


def test_a_refusal_that_is_kept_keeps_no_parsed_document_in_memory(tmp_path: Path) -> None:
    world = ForkedWorld(tmp_path / "world")
    made = world.make_run("bad", outputs=["site_timezones"])
    pack = open_pack(load_wiring(str(world.wiring)))
    gate = pack.gates["gate.layer1.2A.validation"]
    tokens = {name: str(made[name]) for name in TOKENS}
    assert gate.index is not None
    (Path(made["engine_run_root"]) / gate.index.render(tokens)).write_bytes(b"{")
    artifacts = LocalArtifacts([str(world.runs)], 1, None)
    root = artifacts.open(made["engine_run_root"], ReadBudget())
    refusal: BaseException | None = read_gate(root, gate, tokens).refusal
    assert refusal is not None
    while refusal is not None:
        assert refusal.__traceback__ is None
        refusal = refusal.__cause__ or refusal.__context__
    root.close()
    artifacts.close()


def test_an_index_takes_its_turn_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(gate_reader, "parse_in_turn", lambda _budget, size, parse: sizes.append(size) or parse())
    world = ForkedWorld(tmp_path / "world")
    made = world.make_run("large", outputs=["site_timezones"])
    gate = open_pack(load_wiring(str(world.wiring))).gates["gate.layer1.2A.validation"]
    tokens = {name: str(made[name]) for name in TOKENS}
    assert gate.index is not None
    artifacts = LocalArtifacts([str(world.runs)], 1, None)
    root = artifacts.open(made["engine_run_root"], ReadBudget())
    read_gate(root, gate, tokens)
    root.close()
    artifacts.close()
    assert sizes == [(Path(made["engine_run_root"]) / gate.index.render(tokens)).stat().st_size]


def test_large_documents_are_parsed_one_at_a_time_and_leave_as_long_to_others() -> None:
    parsed: list[str] = []
    begun = threading.Event()

    def slow() -> str:
        begun.set()
        time.sleep(0.1)
        parsed.append("large")
        return "large"

    thread = threading.Thread(target=parse_in_turn, args=(ReadBudget(), 1 << 20, slow))
    thread.start()
    assert begun.wait(10)
    assert parse_in_turn(ReadBudget(), 100, lambda: "small") == "small"
    assert parse_in_turn(ReadBudget(share=BATCH_SHARE), 1 << 20, lambda: "of a batch") == "of a batch"
    assert parsed == [], "neither small documents nor batches wait"
    began = time.monotonic()
    assert parse_in_turn(ReadBudget(), 1 << 20, lambda: parsed[0]) == "large"
    assert time.monotonic() - began > 0.1, "the first one paused before it gave its turn away"
    thread.join()


def test_a_document_that_was_refused_is_out_of_memory_before_the_next_one_is_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Document(dict[str, int]):
        pass

    parsed: list[weakref.ref[Document]] = []
    gone: list[bool] = []

    def refuse() -> str:
        document = Document()
        parsed.append(weakref.ref(document))
        try:
            raise ValueError("at its end")
        except ValueError as error:
            raise EvidenceRefused("bad") from error

    # the pause comes before the turn is given away
    monkeypatch.setattr(time, "sleep", lambda _seconds: gone.append(parsed[0]() is None))
    with pytest.raises(EvidenceRefused):
        parse_in_turn(ReadBudget(), 1 << 20, refuse)
    assert gone == [True]
