"""The command that copies an engine run to S3, and lets a request name that place."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import REPO, World, s3_place

from sr_tools import upload

pytestmark = pytest.mark.parity
SMALL = {"members": 2, "parts": 1, "outputs": ["outlet_catalogue"]}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, REPO / "scripts/upload_engine_run.py", *map(str, arguments)],
                          capture_output=True, text=True, timeout=120, check=False)  # fmt: skip


def test_every_file_is_copied_and_the_request_names_where(world: World, tmp_path: Path) -> None:
    place = s3_place()
    made = world.make_run(**SMALL)
    root, request = Path(made["engine_run_root"]), tmp_path / "request.json"
    request.write_text(json.dumps(made["request"]))
    prefix = "/".join(filter(None, (place.prefix, f"upload-{made['run_id'][:8]}-{tmp_path.name}")))
    endpoint = ["--endpoint-url", place.endpoint] if place.endpoint else []
    done = run(root, f"s3://{place.bucket}/{prefix}", "--request", request, *endpoint)
    assert done.returncode == 0, done.stderr
    location = f"s3://{place.bucket}/{prefix}/{root.name}"
    assert done.stdout.strip() == location == json.loads(request.read_text())["engine_run_root"]
    client = place.client()
    listed = client.list_objects_v2(Bucket=place.bucket, Prefix=f"{prefix}/")["Contents"]
    keys = {item["Key"].removeprefix(f"{prefix}/{root.name}/"): item["Size"] for item in listed}
    assert keys == {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}
    for item in listed:
        client.delete_object(Bucket=place.bucket, Key=item["Key"])


def test_flags_are_written_after_all_that_they_seal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """SR may examine the run between any two objects: a flag beside members that are to come contradicts them."""
    root = Path(world.make_run(**SMALL)["engine_run_root"])
    begun: list[Path] = []
    ended: list[Path] = []

    class Client:
        def upload_file(self, path: str, *_: object, **__: object) -> None:
            begun.append(Path(path))
            if path.endswith(".flag"):
                assert len(ended) >= others, "all else is there"
            time.sleep(0.001)
            ended.append(Path(path))

    monkeypatch.setattr(upload, "_client", lambda _: Client())
    others = sum(1 for path in root.rglob("*") if path.is_file() and path.suffix != ".flag")
    upload.upload(root, "s3://bucket/x", None)
    assert sorted(begun) == sorted(ended) == sorted(path for path in root.rglob("*") if path.is_file())
    assert len(begun) > others


def test_a_store_that_does_not_answer_has_an_exit_code_of_its_own(world: World) -> None:
    made = world.make_run(**SMALL)
    s3_place()
    done = run(made["engine_run_root"], "s3://no-such-bucket-here/x", "--endpoint-url", "http://127.0.0.1:9")
    assert done.returncode == 5
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("upload_engine_run.py: ")


@pytest.mark.parametrize("arguments", [["/nowhere", "s3://bucket/x"], [".", "bucket/x"], []])
def test_what_is_no_run_or_no_location_is_a_usage_error(arguments: list[str]) -> None:
    assert run(*arguments).returncode == 2
