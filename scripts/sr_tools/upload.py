"""Copying an engine run to S3: the command ``upload_engine_run.py``."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

DESCRIPTION: Final = """\
Copy an engine run to S3, and let a run request name that place.

upload_engine_run.py RUN s3://bucket/prefix [--request FILE]

Everything under RUN goes to s3://bucket/prefix/RUN_NAME/, the flags of gates after all else. Credentials come from
the AWS SDK's default chain; the endpoint from --endpoint-url, SR_S3_ENDPOINT_URL or AWS_ENDPOINT_URL. With --request
the file's engine_run_root is rewritten. Exit codes: 0 copied, 2 usage, 5 the store does not answer.
"""
#: Files that are uploaded at once: an engine run is many small files, whose cost is the round trip.
THREADS: Final = 8
#: Most bytes of one put. What is put at once has a checksum of the whole object, which a policy may have SR take.
PUT_BYTES: Final = 5 << 30


def _client(endpoint_url: str | None) -> Any:  # noqa: ANN401 - boto3 is untyped
    import boto3  # noqa: PLC0415 - slow, and an extra
    from botocore.config import Config  # noqa: PLC0415

    style = {"addressing_style": "path"} if endpoint_url else {}
    return boto3.client("s3", endpoint_url=endpoint_url, config=Config(s3=style, max_pool_connections=THREADS))


def upload(run: Path, target: str, endpoint_url: str | None) -> str:
    """Copy a run.

    Args:
        run: Its folder.
        target: ``s3://bucket/prefix``.
        endpoint_url: Of an S3-compatible server; None for AWS.

    Returns:
        The ``s3://`` location that the run has there.

    Raises:
        Boto3Error, BotoCoreError, ClientError: The store does not answer, or refuses.
    """
    bucket, _, prefix = target.removeprefix("s3://").strip("/").partition("/")
    base = "/".join(filter(None, (prefix, run.name)))
    from boto3.s3.transfer import TransferConfig  # noqa: PLC0415 - slow, and an extra

    s3 = _client(endpoint_url)
    put_at_once, checksum = TransferConfig(multipart_threshold=PUT_BYTES), {"ChecksumAlgorithm": "SHA256"}
    files = sorted(path for path in run.rglob("*") if path.is_file())
    flags = [path for path in files if path.suffix == ".flag"]
    others = [path for path in files if path.suffix != ".flag"]
    done, total = [0], sum(path.stat().st_size for path in files)
    shows = sys.stderr.isatty()
    with ThreadPoolExecutor(THREADS) as pool:

        def sent(count: int) -> None:
            done[0] += count  # two threads may lose a part between them: it is only shown
            if shows:
                print(f"\ruploaded {done[0] / 1e9:.2f} of {total / 1e9:.2f} GB", end="", file=sys.stderr, flush=True)

        def put(path: Path) -> None:
            key = f"{base}/{path.relative_to(run)}"
            s3.upload_file(str(path), bucket, key, ExtraArgs=checksum, Callback=sent, Config=put_at_once)

        for group in (others, flags):  # a flag seals what it stands beside: SR may examine between any two objects
            list(pool.map(put, group))
    if shows:
        print(file=sys.stderr)
    return f"s3://{bucket}/{base}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 when the run is copied, 2 for a usage error, 5 when the store does not answer."""
    parser = argparse.ArgumentParser(
        prog="upload_engine_run.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of an engine run")
    parser.add_argument("target", metavar="s3://bucket/prefix", help="where it goes")
    parser.add_argument("--request", metavar="FILE", type=Path, help="run request to rewrite")
    default = os.environ.get("SR_S3_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL")
    parser.add_argument("--endpoint-url", metavar="URL", default=default, help="S3-compatible server (default: AWS)")
    options = parser.parse_args(argv)
    if not options.run.is_dir() or not options.target.startswith("s3://"):
        parser.error("RUN must be a folder, and the target s3://bucket/prefix")
    from boto3.exceptions import Boto3Error  # noqa: PLC0415 - slow, and an extra
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        location = upload(options.run, options.target, options.endpoint_url)
    except (Boto3Error, BotoCoreError, ClientError) as error:
        print(f"upload_engine_run.py: {error}", file=sys.stderr)
        return 5
    if options.request is not None:
        document = json.loads(options.request.read_bytes())
        options.request.write_text(json.dumps(document | {"engine_run_root": location}, indent=2) + "\n", "utf-8")
    print(location)
    return 0
