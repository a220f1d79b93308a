"""Engine roots on S3: objects that change during an examination, versions, and digests; on two servers.

Needs ``SR_TEST_S3_BUCKET``; half of it ``SR_TEST_S3_SIGNED_ENDPOINT_URL``, a server that checks signatures.
"""

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import meanwhile, status
from s3_support import BODY, MANY, PASSING, Spot, digest_of, opened, sha

from scenario_runner.artifacts import s3_tree
from scenario_runner.artifacts.base import FileDigest, Kind
from scenario_runner.artifacts.budget import ReadBudget
from scenario_runner.artifacts.reuse import DigestReuse
from scenario_runner.contracts.errors import EvidenceChanged, EvidenceMissing
from scenario_runner.storage.s3_client import S3Bucket

pytest_plugins = ("s3_fixtures",)
pytestmark = pytest.mark.parity


CHANGES: dict[str, Callable[[Spot], object]] = {
    "replaced": lambda spot: spot.put("root/file", b"another" * 100),
    "replaced by one of the same size": lambda spot: spot.put("root/file", BODY[::-1]),
    "removed": lambda spot: spot.remove("root/file"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", ["digest", "read"])
def test_an_object_that_changes_between_listing_and_reading_is_noticed(spot: Spot, change: str, way: str) -> None:
    spot.put_all({"root/file": BODY, "root/other": b"x"})
    root = opened(spot)
    rule = spot.proxy.add(meanwhile(lambda: CHANGES[change](spot)), "GET", "root/file")
    with pytest.raises(EvidenceChanged):
        root.read("file", MANY) if way == "read" else digest_of(root, "file")
    assert rule.hits == 1


@pytest.mark.parametrize("change", CHANGES)
def test_an_object_that_changes_between_two_blocks_never_gives_a_digest(
    first: Spot, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr("scenario_runner.artifacts.s3._BLOCK", 500)
    monkeypatch.setattr("scenario_runner.artifacts.s3._AHEAD_BYTES", 500)
    first.put_all({"root/file": BODY, "root/other": b"x"})
    root = opened(first)
    first.proxy.add(meanwhile(lambda: CHANGES[change](first)), "GET", "root/file", skip=2)
    with pytest.raises(EvidenceChanged):
        digest_of(root, "file")


@pytest.mark.parametrize("at_once", [2000, 1])
@pytest.mark.parametrize("change", [*CHANGES, "another one beside it"])
def test_an_object_that_changes_between_look_and_confirmation_is_noticed(
    spot: Spot, monkeypatch: pytest.MonkeyPatch, change: str, at_once: int
) -> None:
    monkeypatch.setattr(s3_tree, "WHOLE_LISTING", at_once)
    spot.put_all({"root/file": BODY, "root/a/1": b"1", "root/b/1": b"1"})
    root = opened(spot)
    digest_of(root, "file", "a/1")
    root.files_under("a")
    snapshot = root.snapshot()
    root.confirm(snapshot)
    if change in CHANGES:
        CHANGES[change](spot)
    else:
        spot.put("root/a/2", b"2")
    with pytest.raises(EvidenceChanged):
        root.confirm(snapshot)
    with pytest.raises(EvidenceChanged):
        opened(spot).confirm(snapshot)


@pytest.mark.parametrize("appears", ["root/late", "root/late/file"])
def test_what_was_absent_and_appears_before_the_confirmation_is_noticed(spot: Spot, appears: str) -> None:
    spot.put("root/file")
    root = opened(spot)
    assert root.kind("late") is Kind.ABSENT
    snapshot = root.snapshot()
    root.confirm(snapshot)
    spot.put(appears)
    with pytest.raises(EvidenceChanged):
        root.confirm(snapshot)


def test_an_object_written_again_with_equal_bytes_is_looked_at_again_once_its_time_differs(spot: Spot) -> None:
    """Equal bytes have an equal ETag; the time, in whole seconds, tells. Within one second nothing of it matters."""
    spot.put("root/file", BODY)
    root = opened(spot)
    before = digest_of(root, "file")
    snapshot = root.snapshot()
    written = time.time()
    while int(time.time()) <= int(written) + 1:
        time.sleep(0.05)
    spot.put("root/file", BODY)
    with pytest.raises(EvidenceChanged):
        root.confirm(snapshot)
    assert digest_of(opened(spot), "file") == before


# --- versions ---------------------------------------------------------------------------------------------------------


def test_the_version_that_was_read_is_pinned_and_reported(spot: Spot) -> None:
    name = f"sr-versions-{secrets.token_hex(4)}"
    spot.client.create_bucket(Bucket=name)
    versioned = replace(spot, place=replace(spot.place, bucket=name))
    try:
        spot.client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        versions = [versioned.put("root/file", data) for data in (b"old", b"new")]
        other = versioned.put("root/other", b"other")
        assert len({*versions, other, ""}) == 4, "the server gives versions"
        root = opened(versioned)
        found = digest_of(root, "file", "other")
        assert found.files == (
            FileDigest("file", 3, sha(b"new"), versions[1]),
            FileDigest("other", 5, sha(b"other"), other),
        )
        root.confirm(root.snapshot())
        old = versioned.client.get_object(Bucket=name, Key=f"{spot.prefix}/root/file", VersionId=versions[0])
        assert old["Body"].read() == b"old"
        versioned.proxy.add(meanwhile(lambda: versioned.put("root/file", b"3rd")), "GET", "root/file")
        with pytest.raises(EvidenceChanged):
            digest_of(opened(versioned), "file")
    finally:
        for page in spot.client.get_paginator("list_object_versions").paginate(Bucket=name):
            for item in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
                spot.client.delete_object(Bucket=name, Key=item["Key"], VersionId=item["VersionId"])
        spot.client.delete_bucket(Bucket=name)


def test_a_bucket_without_versions_reports_none(spot: Spot) -> None:
    spot.put("root/file", b"x")
    assert digest_of(opened(spot), "file").files[0].version == ""


# --- digests ----------------------------------------------------------------------------------------------------------


def test_the_digest_of_a_sequence_is_that_of_its_concatenation(spot: Spot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scenario_runner.artifacts.s3._BLOCK", 700)
    parts = {f"m/{number}": BODY[number * 7 : number * 7 + size] for number, size in enumerate((0, 1, 699, 700, 1500))}
    spot.put_all({f"root/{path}": data for path, data in parts.items()})
    root = opened(spot)
    order = ["m/3", "m/0", "m/4", "m/1", "m/2", "m/3"]
    found, alone, nothing = root.digest([order, ["m/4"], ["m/0"]])
    assert found.sha256 == sha(b"".join(parts[path] for path in order))
    assert found.files == tuple(FileDigest(path, len(parts[path]), sha(parts[path])) for path in order)
    assert (alone.sha256, nothing.sha256) == (sha(parts["m/4"]), sha(b""))
    assert found.bytes == sum(len(parts[path]) for path in order)


def test_small_objects_do_not_need_the_native_client_and_large_ones_do(
    first: Spot, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    get_range = S3Bucket.get_range

    def noting(bucket: S3Bucket, key: str, start: int, end: int, etag: str) -> Any:
        asked.append(key.rpartition("/")[2])
        return get_range(bucket, key, start, end, etag)

    monkeypatch.setattr(S3Bucket, "get_range", noting)
    first.put_all({"root/small": BODY, "root/empty": b"", "root/odd name+&=?": b"odd", "root/large": b"x" * (1 << 20)})
    root = opened(first)
    root.prefetch(["small", "absent"], MANY)
    assert root.read("small", MANY) == BODY
    assert [found.sha256 for found in root.digest([["empty"], ["odd name+&=?", "small"]])] == [
        sha(b""), sha(b"odd" + BODY)
    ]  # fmt: skip
    assert asked == []
    assert digest_of(root, "large").sha256 == sha(b"x" * (1 << 20))
    assert asked == ["large"]


def test_an_object_that_libcurl_is_denied_is_read_by_the_native_client(first: Spot) -> None:
    first.put_all({f"root/{number}": str(number).encode() for number in range(20)})
    # Each of these is denied once: first of all, whoever asks.
    rules = [first.proxy.add(status(403), "GET", f"root/{number}", times=1) for number in (10, 13, 16, 19)]
    sequences = [[str(number)] for number in range(20)]
    assert [found.sha256 for found in opened(first).digest(sequences)] == [sha(str(n).encode()) for n in range(20)]
    assert [rule.hits for rule in rules] == [1] * 4


def test_one_missing_member_does_not_take_other_sequences_along(spot: Spot) -> None:
    spot.put_all({"root/a": b"a", "root/b": b"b"})
    missing, fine = opened(spot).digest([["a", "absent"], ["b"]])
    assert isinstance(missing, EvidenceMissing)
    assert fine.sha256 == sha(b"b")


def test_a_large_object_is_digested_in_blocks_in_bounded_memory(first: Spot, tmp_path: Path) -> None:
    """In a process of its own, whose peak is measured: an object of 96 MiB, in blocks of 8 MiB."""
    size = 96 << 20
    data = secrets.token_bytes(1 << 20) * (size >> 20)
    first.put("root/large", data)
    script = tmp_path / "look.py"
    script.write_text(
        "import json, sys\n"
        "from scenario_runner.artifacts.budget import ReadBudget\n"
        "from scenario_runner.artifacts.s3 import S3Artifacts\n"
        "from scenario_runner.storage.s3_client import S3Settings\n"
        "def peak(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) << 10\n"
        "uri, settings, small = sys.argv[1], S3Settings(sys.argv[2], sys.argv[3], True), sys.argv[4]\n"
        "artifacts = S3Artifacts([uri], settings, 2, None)\n"
        "read = []\n"
        "root = artifacts.open(uri, ReadBudget(read.append))\n"
        "root.digest([[small]])\n"
        "before = peak()\n"
        "(found,) = root.digest([['large']])\n"
        "print(json.dumps([found.sha256, found.bytes, peak() - before, max(read), sum(read)]))\n",
        "utf-8",
    )
    first.put("root/small", b"")
    with first.proxy.counting() as counts:
        done = subprocess.run(
            [sys.executable, str(script), first.uri("root"), first.proxy.url, first.place.region, "small"],
            capture_output=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    digest, seen, grown, block, read = json.loads(done.stdout)
    assert (digest, seen, read) == (sha(data), size, size)
    assert block == 4 << 20
    assert counts["GET"] == 1 + size // block
    assert grown < 64 << 20, f"{grown} bytes more than before, of an object of {size}"


@pytest.mark.parametrize("fault", ["503 SlowDown", "reset mid-body", "a short body", "500"])
def test_a_fault_in_any_block_leaves_the_digest_right(first: Spot, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr("scenario_runner.artifacts.s3._BLOCK", 100_000)
    data = secrets.token_bytes(1_050_000)
    first.put("root/file", data)
    rule = first.proxy.add(PASSING[fault](), "GET", times=None, chance=0.4)
    for _ in range(4):
        assert digest_of(opened(first), "file").sha256 == sha(data)
    assert rule.hits > 5


@pytest.mark.usefixtures("writes_are_old")
def test_a_second_look_at_unchanged_objects_lists_once_and_reads_nothing(spot: Spot) -> None:
    spot.put_all({f"root/a/{number}": b"%d" % number * 1000 for number in range(12)})
    artifacts = spot.artifacts(reuse=DigestReuse())
    paths = [f"a/{number}" for number in range(12)]

    def look() -> Any:
        root = artifacts.open(spot.uri("root"), ReadBudget())
        return root.files_under("a"), root.digest([paths, paths[:1]]), root.snapshot()

    with spot.proxy.counting() as counts:
        found = look()
    assert (counts["LIST"], counts["GET"], counts.total()) == (1, 13, 14)
    with spot.proxy.counting() as counts:
        again = look()
    assert dict(counts) == {"LIST": 1}
    assert again == found
    with spot.proxy.counting() as counts:
        artifacts.open(spot.uri("root"), ReadBudget()).confirm(found[2])
    assert dict(counts) == {"LIST": 1}, "opening and confirming an unchanged root is one listing"


@pytest.mark.usefixtures("writes_are_old")
@pytest.mark.parametrize("change", CHANGES)
def test_a_kept_digest_is_not_believed_of_a_changed_object(spot: Spot, change: str) -> None:
    spot.put_all({"root/file": BODY, "root/other": b"x"})
    artifacts = spot.artifacts(reuse=DigestReuse())
    digest_of(artifacts.open(spot.uri("root"), ReadBudget()), "file")
    CHANGES[change](spot)
    root = artifacts.open(spot.uri("root"), ReadBudget())
    if change == "removed":
        with pytest.raises(EvidenceMissing):
            digest_of(root, "file")
    else:
        assert digest_of(root, "file").sha256 == sha(spot.data("root/file") or b"")


def test_the_digest_of_an_object_that_was_just_written_is_not_kept(spot: Spot) -> None:
    spot.put("root/file", BODY)
    artifacts = spot.artifacts(reuse=DigestReuse())
    for _ in range(2):
        with spot.proxy.counting() as counts:
            root = artifacts.open(spot.uri("root"), ReadBudget())
            assert digest_of(root, "file").sha256 == sha(BODY)
            assert not root.snapshot().stable
        assert counts["GET"] == 1


def test_small_files_that_will_be_read_are_fetched_once(spot: Spot) -> None:
    spot.put_all({f"root/{number}": b"%d" % number for number in range(6)})
    root = opened(spot)
    with spot.proxy.counting() as counts:
        root.prefetch([*map(str, range(6)), "absent"], 100)
        assert [root.read(str(number), 100) for number in range(6)] == [b"%d" % number for number in range(6)]
    assert counts["GET"] == 6
