#!/usr/bin/env python3
"""Copy an engine run to S3, and let a run request name that place.

upload_engine_run.py RUN s3://bucket/prefix [--request FILE]

Everything under RUN goes to s3://bucket/prefix/RUN_NAME/. Credentials come from the AWS SDK's default chain; the
endpoint from --endpoint-url, SR_S3_ENDPOINT_URL or AWS_ENDPOINT_URL. With --request the file's engine_run_root is
rewritten. Exit codes: 0 copied, 2 usage, 5 the store does not answer.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

THREADS = 8


def client(endpoint_url: str | None) -> Any:  # noqa: ANN401 - boto3 is untyped
    """An S3 client."""
    import boto3  # noqa: PLC0415 - slow, and an extra
    from botocore.config import Config  # noqa: PLC0415

    style = {"addressing_style": "path"} if endpoint_url else {}
    return boto3.client("s3", endpoint_url=endpoint_url, config=Config(s3=style, max_pool_connections=THREADS))


def upload(run: Path, target: str, endpoint_url: str | None) -> str:
    """Copy a run; returns the ``s3://`` location it has there."""
    bucket, _, prefix = target.removeprefix("s3://").strip("/").partition("/")
    base = "/".join(filter(None, (prefix, run.name)))
    s3 = client(endpoint_url)
    files = sorted(path for path in run.rglob("*") if path.is_file())
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda path: s3.upload_file(str(path), bucket, f"{base}/{path.relative_to(run)}"), files))
    return f"s3://{bucket}/{base}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of an engine run")
    parser.add_argument("target", metavar="s3://bucket/prefix", help="where it goes")
    parser.add_argument("--request", metavar="FILE", type=Path, help="run request to rewrite")
    default = os.environ.get("SR_S3_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL")
    parser.add_argument("--endpoint-url", metavar="URL", default=default, help="S3-compatible server (default: AWS)")
    options = parser.parse_args(argv)
    if not options.run.is_dir() or not options.target.startswith("s3://"):
        parser.error("RUN must be a folder, and the target s3://bucket/prefix")
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - slow, and an extra

    try:
        location = upload(options.run, options.target, options.endpoint_url)
    except (BotoCoreError, ClientError) as error:
        print(f"upload_engine_run.py: {error}", file=sys.stderr)
        return 5
    if options.request is not None:
        document = json.loads(options.request.read_bytes())
        options.request.write_text(json.dumps(document | {"engine_run_root": location}, indent=2) + "\n", "utf-8")
    print(location)
    return 0


if __name__ == "__main__":
    sys.exit(main())
