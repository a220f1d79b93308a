"""As in production: requests on a stream, engine runs and ledger on S3, rows in Postgres, READY back on the stream."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from streaming import ENDPOINT, REGION, WHY_NOT, KinesisWorld, client, run_ids, seed_leases
from support import s3_place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from postgres_support import Schema

pytestmark = [pytest.mark.localstack, pytest.mark.skipif(not ENDPOINT, reason=WHY_NOT)]


@pytest.fixture
def schema() -> Iterator[Schema]:
    if not os.environ.get("SR_TEST_PG_DSN"):
        pytest.skip("SR_TEST_PG_DSN is not set: no Postgres to keep the rows in")
    from postgres_support import Schema, given_dsn

    made = Schema(given_dsn())
    yield made
    made.drop()


def upload(folder: Path, bucket: str, prefix: str, s3: Any) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            s3.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder)}")
    return f"s3://{bucket}/{prefix}"


def by_localstack_client() -> Any:
    import localstack_client.session

    url = urlsplit(ENDPOINT)
    os.environ["AWS_ENDPOINT_URL"] = ENDPOINT  # what the localstack client reads
    try:
        session = localstack_client.session.Session(localstack_host=url.hostname, region_name=REGION)
        return session.client("kinesis", endpoint_url=ENDPOINT)
    finally:
        del os.environ["AWS_ENDPOINT_URL"]


def test_requests_become_ready_with_the_ledger_on_s3_and_rows_in_postgres(schema: Schema, tmp_path: Path) -> None:
    place = s3_place()
    s3, tag = place.client(), f"{place.prefix}/kinesis-{secrets.token_hex(4)}".lstrip("/")
    world = KinesisWorld(
        tmp_path / "world",
        wiring_changes={
            "object_store_root": f"s3://{place.bucket}/{tag}/store",
            "s3_endpoint_url": place.endpoint or None,
            "s3_region": place.region or None,
            "s3_path_style": place.path_style,
            "engine_roots": [f"s3://{place.bucket}/{tag}/runs"],
            "authority_store_dsn": schema.dsn,
        },
    )
    seed_leases(world)
    made = world.make_run("sealed", members=3, parts=2)
    root = upload(Path(made["engine_run_root"]), place.bucket, f"{tag}/runs/sealed", s3)
    requests = [made["request"] | {"engine_run_root": root, "run_equivalence_key": f"k-{n}"} for n in range(4)]
    keys = world.put(*requests[:2], kinesis=client())
    keys += world.put(*requests[2:], b"not json", kinesis=by_localstack_client())

    served = world.serve(timeout=180)
    assert served.returncode == 0, served.stderr.decode()[-3000:]

    envelopes = world.signals("READY")
    assert {item["payload"]["run_id"] for item in envelopes} == run_ids(requests)
    for item in envelopes:
        key = f"{tag}/store/{item['payload']['facts_view_ref']}"
        view = s3.get_object(Bucket=place.bucket, Key=key)["Body"].read()
        assert hashlib.sha256(view).hexdigest() == item["attributes"]["facts_view_digest"]
        assert all(locator["path"].startswith(root) for locator in json.loads(view)["locators"])
    states = schema.query("SELECT state, count(*) FROM runs GROUP BY state")
    assert [tuple(row.values()) if isinstance(row, dict) else tuple(row) for row in states] == [("READY", 4)]
    found = schema.query("SELECT record_key, disposition FROM intake_records WHERE disposition <> 'IGNORED'")
    pairs = dict(tuple(row.values()) if isinstance(row, dict) else tuple(row) for row in found)
    assert pairs == dict.fromkeys(keys[:4], "ACCEPTED") | {keys[4]: "REJECTED"}
    run_id = envelopes[0]["payload"]["run_id"]
    code, verified = world.query("verify", run_id)
    assert (code, verified["outcome"]) == (0, "PASS"), verified
    assert [item for item in verified["checks"] if item.get("not_possible")] == []
