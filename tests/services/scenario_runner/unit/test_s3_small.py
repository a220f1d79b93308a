"""Small objects are read by libcurl: only the plainest answer counts, and whatever else comes is no answer."""

from __future__ import annotations

import random
import socket
import ssl
import string
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("pycurl", reason="the s3 extra is not installed")
pytest.importorskip("botocore", reason="the AWS SDK is not installed")

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as SdkCredentials

from scenario_runner.storage import s3_small
from scenario_runner.storage.aws import Keys
from scenario_runner.storage.s3_signing import SignedGet, Signer
from scenario_runner.storage.s3_small import Asked, SmallRead, SmallReads, why_not

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.unit
KEYS = Keys("AKIAEXAMPLE", "secret/of+ours", "")
ETAG = '"0123456789abcdef0123456789abcdef"'
HEAD = f"HTTP/1.1 200 OK\r\nETag: {ETAG}\r\nContent-Length: 3\r\n"
CLOSE = b"<close>"
PLAIN = f"{HEAD}\r\nabc".encode()


# --- signatures


def signed_by_the_sdk(url: str, etag: str, keys: Keys, region: str) -> dict[str, str]:
    request = AWSRequest("GET", url, headers={"if-match": etag})
    S3SigV4Auth(SdkCredentials(keys.access_key, keys.secret_key, keys.token or None), "s3", region).add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


def test_signatures_are_those_of_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(7)
    letters = string.ascii_letters + string.digits + " -_.~!*'()+=&?#%@:,;$äß/日"
    for number in range(200):
        keys = KEYS if number % 2 else Keys("AKIA2", "other", "a/session+token==")
        key = "/".join("".join(dice.choices(letters.replace("/", ""), k=9)).strip() + "x" for _ in range(3))
        address = ("https://bucket.s3.eu-west-1.amazonaws.com", "http://localhost:9000/bucket")[number % 3 == 0]
        now = 1_790_000_000.0 + number * 3600
        found = Signer(lambda keys=keys: keys, "eu-west-1", address, lambda now=now: now).get(key, ETAG)  # type: ignore[misc]
        ours = dict(line.split(": ", 1) for line in found.fields)
        stamp = ours["x-amz-date"]
        monkeypatch.setattr("botocore.auth.get_current_datetime", lambda now=now: _at(now))
        theirs = signed_by_the_sdk(found.url, ETAG, keys, "eu-west-1")
        assert stamp == theirs["x-amz-date"]
        assert ours["x-amz-content-sha256"] == theirs["x-amz-content-sha256"]
        assert ours["authorization"] == theirs["authorization"], key
        assert ours.get("x-amz-security-token") == theirs.get("x-amz-security-token")


def _at(seconds: float) -> Any:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def test_keys_that_were_changed_are_used_within_ten_seconds_and_a_new_day_has_another_key() -> None:
    now, keys = [1_790_000_000.0], [KEYS]
    signer = Signer(lambda: keys[0], "eu-west-1", "http://localhost/b", lambda: now[0])

    def credential() -> str:
        return next(line for line in signer.get("k", ETAG).fields if line.startswith("authorization")).split(",")[0]

    assert "AKIAEXAMPLE/20260921/" in credential()
    keys[0] = Keys("AKIA2", "other", "")
    assert "AKIAEXAMPLE/" in credential()
    now[0] += 10
    assert "AKIA2/20260921/" in credential()
    now[0] += 86_400
    assert "AKIA2/20260922/" in credential()


# --- answers


@contextmanager
def server(
    answer: Callable[[int], bytes | None], tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives the n-th request its answer, and closes the connection after CLOSE, or where that is None."""
    asked: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(client,), daemon=True).start()

    def talk(plain: socket.socket) -> None:
        data = b""
        with suppress(ssl.SSLError), plain, tls.wrap_socket(plain, server_side=True) if tls else plain as client:
            while piece := client.recv(1 << 16):
                data += piece
                while b"\r\n\r\n" in data:
                    head, _, data = data.partition(b"\r\n\r\n")
                    asked.append(head)
                    found = answer(len(asked))
                    if found is None:
                        return
                    client.sendall(found.removesuffix(CLOSE))
                    if found.endswith(CLOSE):
                        return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}", asked
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallReads]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = SmallReads()
    yield made
    made.close()


def asked(url: str, size: int = 3) -> Asked:
    signer = Signer(lambda: KEYS, "eu-west-1", f"{url}/bucket")
    return Asked(signer.get("a/key", ETAG), ETAG, size)


def test_an_object_is_read_with_its_version_over_a_kept_connection_and_the_request_pins_it(reads: SmallReads) -> None:
    versioned = PLAIN.replace(b"Content-Length", b"x-amz-version-id: v1\r\nContent-Length")
    with server(lambda _number: versioned) as (url, requests):
        for _ in range(3):
            assert reads.submit(asked(url)).result() == SmallRead(b"abc", "v1")
    assert len(requests) == 3
    assert requests[0].startswith(b"GET /bucket/a/key HTTP/1.1\r\n")
    assert f"if-match: {ETAG}".encode() in requests[0]
    assert requests[0].lower().count(b"\r\nhost:") == 1
    assert b"user-agent" not in requests[0].lower()


OTHER: dict[str, bytes | None] = {
    "an error": f"HTTP/1.1 403 Forbidden\r\nETag: {ETAG}\r\nContent-Length: 3\r\n\r\nabc".encode(),
    "a failed condition": b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n",
    "a redirect": b"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "a part": f"HTTP/1.1 206 Partial\r\nETag: {ETAG}\r\nContent-Length: 3\r\n\r\nabc".encode(),
    "another ETag": PLAIN.replace(b"0123456789abcdef0123456789abcdef", b"f" * 32),
    "no ETag": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
    "two ETags": PLAIN.replace(b"Content-Length", b'ETag: "f"\r\nContent-Length'),
    "an ETag of an earlier head only": f"HTTP/1.1 100 Continue\r\nETag: {ETAG}\r\n\r\n"
    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc".encode(),
    "fewer bytes": PLAIN.replace(b"Length: 3", b"Length: 2"),
    "more bytes": PLAIN.replace(b"Length: 3\r\n\r\nabc", b"Length: 4\r\n\r\nabcd"),
    "no HTTP": b"abc\r\n\r\n",
    "a connection that is closed": None,
}


@pytest.mark.parametrize("kind", OTHER)
def test_whatever_else_comes_is_no_answer(reads: SmallReads, kind: str) -> None:
    with server(lambda number: OTHER[kind] if number == 1 else None) as (url, _):
        assert reads.submit(asked(url)).result() is None


def test_a_body_that_breaks_off_is_no_answer_and_the_next_one_is(reads: SmallReads) -> None:
    def answer(number: int) -> bytes | None:
        return PLAIN if number > 1 else PLAIN.replace(b"Length: 3", b"Length: 30") + CLOSE

    with server(answer) as (url, _):
        assert reads.submit(asked(url, 30)).result() is None
        assert reads.submit(asked(url)).result() == SmallRead(b"abc", "")


def test_a_kept_connection_that_was_closed_meanwhile_costs_no_answer(reads: SmallReads) -> None:
    with server(lambda number: None if number == 2 else PLAIN) as (url, requests):
        assert reads.submit(asked(url)).result() == SmallRead(b"abc", "")
        assert reads.submit(asked(url)).result() == SmallRead(b"abc", "")
        assert len(requests) == 3


def test_many_are_asked_for_at_the_same_time_and_no_more_than_the_budget(
    reads: SmallReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_small, "_IN_FLIGHT", 5)
    at_once, most, lock = [0], [0], threading.Lock()

    def answer(_number: int) -> bytes:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.02)
        with lock:
            at_once[0] -= 1
        return PLAIN

    with server(answer) as (url, _):
        every = [reads.submit(asked(url)) for _ in range(40)]
        assert {item.result() for item in every} == {SmallRead(b"abc", "")}
    assert 2 <= most[0] <= 5


def test_what_was_given_up_is_not_sent(reads: SmallReads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_small, "_IN_FLIGHT", 1)
    go_on = threading.Event()

    def answer(_number: int) -> bytes:
        go_on.wait(10)
        return PLAIN

    with server(answer) as (url, requests):
        first, second = reads.submit(asked(url)), reads.submit(asked(url))
        second.cancel()
        go_on.set()
        assert first.result() == SmallRead(b"abc", "")
        assert second.result() is None
        assert len(requests) == 1


def test_a_server_that_cannot_be_reached_is_not_asked_for_a_while(reads: SmallReads) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert reads.submit(asked(f"http://127.0.0.1:{port}")).result() is None
    with server(lambda _number: PLAIN) as (url, requests):
        assert reads.submit(asked(url)).result() is None
        assert not requests


def test_a_server_that_does_not_answer_is_given_up(reads: SmallReads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_small, "_TIMEOUT_MS", 100)
    with server(lambda _number: b"") as (url, _):
        assert reads.submit(asked(url)).result() is None


@pytest.mark.parametrize("trusted", [True, False])
def test_over_tls_only_a_server_that_the_system_trusts_is_heard(
    reads: SmallReads, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, trusted: bool
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", "/CN=sr", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with server(lambda _number: PLAIN, context) as (url, _):
        for _ in range(2):
            assert reads.submit(asked(url)).result() == (SmallRead(b"abc", "") if trusted else None)


def test_what_cannot_be_signed_or_sent_is_left_to_the_native_client_alone(reads: SmallReads) -> None:
    assert reads.submit(Asked(None, ETAG, 3)).result() is None
    unsendable = SignedGet("http://127.0.0.1", "http://127.0.0.1/b/k", ['if-match: "\u263a\0"'])
    assert reads.submit(Asked(unsendable, ETAG, 3)).result() is None
    with server(lambda _number: PLAIN) as (url, _):
        assert reads.submit(asked(url)).result() == SmallRead(b"abc", "")


def test_after_a_defect_and_after_the_end_no_answer_comes(reads: SmallReads, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object) -> None:
        raise ZeroDivisionError

    with server(lambda _number: PLAIN) as (url, _), monkeypatch.context() as patched:
        patched.setattr("scenario_runner.storage.s3_small._Curl.begin", defect)
        assert reads.submit(asked(url)).result() is None
    with server(lambda _number: PLAIN) as (url, requests):
        assert reads.submit(asked(url)).result() is None
        ended = SmallReads()
        ended.close()
        ended.close()
        assert ended.submit(asked(url)).result() is None
        assert not requests


def test_a_process_ends_while_an_object_is_asked_for() -> None:
    code = (
        "import sys\nfrom scenario_runner.storage.s3_signing import SignedGet\n"
        "from scenario_runner.storage.s3_small import Asked, SmallReads\n"
        "url = sys.argv[1]\n"
        "asked = SmallReads().submit(Asked(SignedGet(url, url + '/b/k', []), '\"e\"', 3))\n"
        "print(asked.given_up)\n"
    )
    with server(lambda _number: b"") as (url, _):
        done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"False\n", b"")


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "all_proxy"])
def test_where_the_environment_names_a_proxy_nothing_is_sent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("no_proxy", "internal")
    assert why_not() == ""
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert why_not() == f"the environment names a proxy for {name.lower().removesuffix('_proxy')}"
    with server(lambda _number: PLAIN) as (url, requests):
        assert SmallReads().submit(asked(url)).result() is None
        assert not requests


def test_where_no_thread_can_be_started_the_native_client_reads_and_the_next_try_may_work(
    reads: SmallReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: object) -> None:
        raise RuntimeError("can't start new thread")

    with server(lambda _number: PLAIN) as (url, _):
        with monkeypatch.context() as patched:
            patched.setattr("threading.Thread.start", refuse)
            assert reads.submit(asked(url)).result() is None
        assert reads.submit(asked(url)).result() == SmallRead(b"abc", "")


def test_what_waits_when_a_server_is_not_reached_is_not_tried_one_round_after_the_other(
    reads: SmallReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scenario_runner.storage.s3_small._IN_FLIGHT", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    several = [reads.submit(asked(url)) for _ in range(50)]
    assert [item.result() for item in several] == [None] * 50
