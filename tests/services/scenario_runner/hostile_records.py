"""Records that no control bus should bring: how each is made, and what becomes of it."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scenario_runner.contracts.ids import run_id_of

TOPIC = "fp.bus.control.v1"
MIB = 1 << 20
Request = dict[str, Any]
Make = Callable[[Request], bytes]


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


def changed(**fields: Any) -> Make:
    return lambda request: encoded(request | fields)


def without(*keys: str) -> Make:
    return lambda request: encoded({key: value for key, value in request.items() if key not in keys})


def raw_value(key: str, text: str) -> Make:
    """The request with a value written as exactly this JSON text."""
    return lambda request: encoded(request | {key: "@@@"}).replace(b'"@@@"', text.encode())


def window(start: Any, end: Any, **more: Any) -> Make:
    return changed(window={"window_start_utc": start, "window_end_utc": end, "window_tz": "UTC", **more})


def scenario(value: Any) -> Make:
    return changed(scenario=value)


def envelope(request: Request, **fields: Any) -> dict[str, Any]:
    return {
        "topic": TOPIC,
        "message_id": "m-1",
        "published_at_utc": "2026-01-01T00:00:00Z",
        "attributes": {"kind": "RUN_REQUEST"},
        "partition_key": run_id_of(request["run_equivalence_key"]),
        "payload": request,
        **fields,
    }


def enveloped(*, leave_out: str = "", **fields: Any) -> Make:
    def make(request: Request) -> bytes:
        document = envelope(request, **fields)
        document.pop(leave_out, None)
        return encoded(document)

    return make


def arrived(**payload: Any) -> Make:
    """The word that evidence has come."""
    return enveloped(attributes={"kind": "EVIDENCE_ARRIVED"}, payload=payload)


def root(place: Callable[[str], str]) -> Make:
    return lambda request: encoded(request | {"engine_run_root": place(request["engine_run_root"])})


NOT_JSON, SCHEMA, ENVELOPE = "RECORD_NOT_JSON", "REQUEST_SCHEMA_INVALID", "ENVELOPE_INVALID"
KIND, LARGE, PLACE = "KIND_UNKNOWN", "RECORD_TOO_LARGE", "ENGINE_ROOT_NOT_ALLOWED"
UPPER = "A" * 64
# name: (how the record is made from a good request, reason code, what the detail must name)
REJECTED: dict[str, tuple[Make, str, str]] = {
    "empty file": (lambda _: b"", NOT_JSON, ""),
    "white space only": (lambda _: b" \n\t ", NOT_JSON, ""),
    "not json": (lambda _: b"run please", NOT_JSON, ""),
    "binary": (lambda _: bytes(range(256)), NOT_JSON, "UTF-8"),
    "single quotes": (lambda r: repr(r).encode(), NOT_JSON, ""),
    "cut off": (lambda r: encoded(r)[:-20], NOT_JSON, ""),
    "two documents": (lambda r: encoded(r) + encoded(r), NOT_JSON, ""),
    "two lines": (lambda r: encoded(r) + b"\n" + encoded(r) + b"\n", NOT_JSON, ""),
    "trailing comma": (lambda r: encoded(r)[:-1] + b",}", NOT_JSON, ""),
    "comment": (lambda r: b"// please\n" + encoded(r), NOT_JSON, ""),
    "nul after": (lambda r: encoded(r) + b"\0", NOT_JSON, ""),
    "utf-16": (lambda r: json.dumps(r).encode("utf-16"), NOT_JSON, "UTF-16 byte order mark; send UTF-8"),
    "utf-16 big end": (lambda r: b"\xfe\xff" + json.dumps(r).encode("utf-16-be"), NOT_JSON, "UTF-16 byte order mark"),
    "utf-16 without mark": (lambda r: json.dumps(r).encode("utf-16-le"), NOT_JSON, "UTF-16"),
    "utf-32": (lambda r: json.dumps(r).encode("utf-32"), NOT_JSON, "UTF-32 byte order mark; send UTF-8"),
    "byte order mark": (lambda r: b"\xef\xbb\xbf" + encoded(r), NOT_JSON, "UTF-8 byte order mark; send UTF-8 without"),
    "base64": (lambda r: base64.b64encode(encoded(r)), NOT_JSON, "base64 of JSON; send the JSON itself"),
    "base64 in lines": (lambda r: base64.encodebytes(encoded(r)), NOT_JSON, "base64 of JSON"),
    "base64 as a string": (lambda r: encoded(base64.b64encode(encoded(r)).decode()), NOT_JSON, "base64 of JSON"),
    "base64 for urls": (
        lambda r: base64.urlsafe_b64encode(encoded(r | {"notes": "??>>~~"})).rstrip(b"="),
        NOT_JSON,
        "base64 of JSON",
    ),
    "gzip": (lambda r: gzip.compress(encoded(r)), NOT_JSON, "gzip; send the JSON itself"),
    "latin-1": (
        lambda r: json.dumps(r | {"notes": "caf\xe9"}, ensure_ascii=False).encode("latin-1"),
        NOT_JSON,
        "UTF-8",
    ),
    "overlong utf-8": (lambda r: encoded(r | {"notes": "@"}).replace(b"@", b"\xc0\xaf"), NOT_JSON, "UTF-8"),
    "utf-8 surrogates": (lambda r: encoded(r | {"notes": "@"}).replace(b"@", b"\xed\xa0\x80"), NOT_JSON, "UTF-8"),
    "raw control character": (lambda r: encoded(r | {"notes": "@"}).replace(b"@", b"\x01"), NOT_JSON, ""),
    "arrays 100,000 deep": (lambda _: b"[" * 100_000 + b"]" * 100_000, NOT_JSON, ""),
    "objects 100,000 deep": (lambda _: b'{"a":' * 100_000 + b"1" + b"}" * 100_000, NOT_JSON, "deep"),
    "deep in a good request": (raw_value("notes", "[" * 100_000 + "]" * 100_000), NOT_JSON, "deep"),
    "deep in an envelope": (
        lambda r: encoded(envelope(r, attributes={"kind": "RUN_REQUEST", "x": "@@@"})).replace(
            b'"@@@"', b"[" * 100_000 + b"]" * 100_000
        ),
        NOT_JSON,
        "deep",
    ),
    "nan": (raw_value("notes", "NaN"), NOT_JSON, "NaN"),
    "infinity": (raw_value("seed", "Infinity"), NOT_JSON, "Infinity"),
    "minus infinity": (raw_value("seed", "-Infinity"), NOT_JSON, "Infinity"),
    "key twice": (lambda r: b'{"seed": 7, ' + encoded(r)[1:], NOT_JSON, "seed"),
    "key twice, once escaped": (lambda r: b'{"\\u0073eed": 7, ' + encoded(r)[1:], NOT_JSON, "seed"),
    "nested key twice": (raw_value("scenario", '{"scenario_id": "a", "scenario_id": "a"}'), NOT_JSON, "scenario_id"),
    "integer of 5,000 digits": (raw_value("seed", "9" * 5000), NOT_JSON, ""),
    "top level list": (lambda r: encoded([r]), NOT_JSON, "list"),
    "top level string": (lambda r: encoded(json.dumps(r)), NOT_JSON, "str"),
    "top level number": (lambda _: b"7", NOT_JSON, "int"),
    "top level null": (lambda _: b"null", NOT_JSON, ""),
    "one byte over the cap": (lambda r: encoded(r).ljust(MIB + 1), LARGE, str(MIB)),
    "three times the cap": (lambda _: b"x" * 3 * MIB, LARGE, str(3 * MIB)),
    # schema
    "empty object": (lambda _: b"{}", SCHEMA, "run_equivalence_key"),
    "unknown field": (changed(priority=1), SCHEMA, "priority"),
    "unknown version field": (changed(contract_version="v9"), SCHEMA, "contract_version"),
    "unknown field in the scenario": (scenario({"scenario_id": "a", "x": 1}), SCHEMA, "scenario"),
    "unknown field in the window": (window("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", x=1), SCHEMA, "window"),
    "field in upper case": (
        lambda r: encoded({k.upper() if k == "seed" else k: v for k, v in r.items()}),
        SCHEMA,
        "seed",
    ),
    "lone surrogate in a value": (raw_value("notes", '"\\ud800"'), SCHEMA, "notes"),
    "lone surrogate in the key": (raw_value("run_equivalence_key", '"\\udfff"'), SCHEMA, "run_equivalence_key"),
    "lone surrogate in the root": (raw_value("engine_run_root", '"/\\ud800"'), SCHEMA, "engine_run_root"),
    "lone surrogate as a field": (lambda r: encoded(r)[:-1] + b', "\\ud800": 1}', SCHEMA, ""),
    **{
        f"no {key}": (without(key), SCHEMA, key)
        for key in ("run_equivalence_key", "manifest_fingerprint", "parameter_hash", "seed", "scenario", "window")
    },
    **{
        f"null {key}": (changed(**{key: None}), SCHEMA, key)
        for key in (
            "seed",
            "scenario",
            "window",
            "output_ids",
            "engine_run_root",
            "notes",
            "invoker",
            "request_id",
            "requested_strategy",
            "run_equivalence_key",
        )
    },
    **{
        f"seed {text}": (raw_value("seed", text), SCHEMA, "seed")
        for text in ('"7"', "7.0", "1e0", "true", "false", "-1", str(2**64), str(2**200), "[7]", '{"seed": 7}', '""')
    },
    **{
        f"{key} {what}": (changed(**{key: value}), SCHEMA, key)
        for key in ("manifest_fingerprint", "parameter_hash")
        for what, value in {
            "upper case": UPPER,
            "with a newline": "a" * 64 + "\n",
            "too short": "a" * 63,
            "too long": "a" * 65,
            "not hex": "g" * 64,
            "prefixed": "0x" + "a" * 62,
            "full width": "\uff41" * 64,
            "a number": 7,
            "empty": "",
            "a path": "../" * 21 + "a",
        }.items()
    },
    "window without a zone": (window("2026-01-01T00:00:00", "2026-01-02T00:00:00"), SCHEMA, "window_start_utc"),
    "window ends where it starts": (window("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"), SCHEMA, "before"),
    "window ends where it starts elsewhere": (
        window("2026-01-01T00:00:00Z", "2026-01-01T02:00:00+02:00"),
        SCHEMA,
        "before",
    ),
    "window backwards": (window("2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"), SCHEMA, "before"),
    "window of dates": (window("2026-01-01", "2026-01-02"), SCHEMA, "window_start_utc"),
    "window of numbers": (window(1, 2), SCHEMA, "window_start_utc"),
    "window on no day": (window("2026-02-30T00:00:00Z", "2026-03-01T00:00:00Z"), SCHEMA, "window_start_utc"),
    "window with a leap second": (window("2026-01-01T23:59:60Z", "2026-01-03T00:00:00Z"), SCHEMA, "leap second"),
    "window with spaces": (window("2026-01-01 00:00:00Z", "2026-01-03T00:00:00Z"), SCHEMA, "window_start_utc"),
    "window with a newline": (window("2026-01-01T00:00:00Z\n", "2026-01-03T00:00:00Z"), SCHEMA, "window_start_utc"),
    "window with ten digits of a second": (
        window("2026-01-01T00:00:00.1234567890Z", "2026-01-03T00:00:00Z"),
        SCHEMA,
        "at most 9",
    ),
    "window within a microsecond": (
        window("2026-01-01T00:00:00.1234567Z", "2026-01-01T00:00:00.1234568Z"),
        SCHEMA,
        "before",
    ),
    "window in arabic digits": (
        window("\u0662026-01-01T00:00:00Z", "2026-01-03T00:00:00Z"),
        SCHEMA,
        "window_start_utc",
    ),
    "window of year 0": (window("0000-01-01T00:00:00Z", "2026-01-03T00:00:00Z"), SCHEMA, "window_start_utc"),
    "window without tz": (
        changed(window={"window_start_utc": "2026-01-01T00:00:00Z", "window_end_utc": "2026-01-02T00:00:00Z"}),
        SCHEMA,
        "window_tz",
    ),
    "window null end": (window("2026-01-01T00:00:00Z", None), SCHEMA, "window_end_utc"),
    "window zone climbs": (
        window("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", window_tz="../etc"),
        SCHEMA,
        "window_tz",
    ),
    **{
        f"window in the zone {zone}": (
            window("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", window_tz=zone),
            SCHEMA,
            "tz database",
        )
        for zone in ("Mars/Olympus", "utc", "europe/london", "Europe", "localtime", "posixrules", "UTC+1")
    },
    **{
        f"{key} with {ord(char):04x}": (changed(**{key: f"a{char}b"}), SCHEMA, key)
        for key in ("run_equivalence_key", "invoker", "request_id", "engine_run_root")
        for char in "\x7f\x80\x85\x9b\x9f\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069"
    },
    **{
        f"scenario id {value!r}": (scenario({"scenario_id": value}), SCHEMA, "scenario_id")
        for value in (
            "a/b",
            "x/../../..",
            "..",
            ".",
            "a..b",
            ".a",
            "a.",
            "",
            " ",
            "a b",
            "a\nb",
            "a\n",
            "a\0b",
            "a\x1b[2J",
            "\x7f",
            "{run_id}",
            "a{b",
            "a}b",
            "a\\b",
            "a*",
            "%2e%2e",
            "a?b",
            "\u2024\u2024",
            "a" * 129,
            "~/\u00fc",
            7,
        )
    },
    "scenario in both forms": (scenario({"scenario_id": "a", "scenario_set": ["a"]}), SCHEMA, "exactly one"),
    "scenario in neither form": (scenario({}), SCHEMA, "exactly one"),
    "scenario as text": (scenario("baseline_v1"), SCHEMA, "scenario"),
    "scenario set empty": (scenario({"scenario_set": []}), SCHEMA, "scenario_set"),
    "scenario set with a climber": (scenario({"scenario_set": ["a", "../b"]}), SCHEMA, "scenario_set"),
    "scenario set as text": (scenario({"scenario_set": "abc"}), SCHEMA, "scenario_set"),
    "scenario set huge": (scenario({"scenario_set": [f"s{n}" for n in range(1025)]}), SCHEMA, "scenario_set"),
    "strategy unknown": (changed(requested_strategy="FORCE"), SCHEMA, "requested_strategy"),
    "strategy in lower case": (changed(requested_strategy="auto"), SCHEMA, "requested_strategy"),
    "strategy bypass": (changed(requested_strategy="SKIP_GATES"), SCHEMA, "requested_strategy"),
    "key empty": (changed(run_equivalence_key=""), SCHEMA, "run_equivalence_key"),
    "key a number": (changed(run_equivalence_key=7), SCHEMA, "run_equivalence_key"),
    "key with nul": (changed(run_equivalence_key="a\0b"), SCHEMA, "run_equivalence_key"),
    "key with newline": (changed(run_equivalence_key="a\n"), SCHEMA, "run_equivalence_key"),
    "key with escape": (changed(run_equivalence_key="\x1b]0;x\x07"), SCHEMA, "run_equivalence_key"),
    "key too long": (changed(run_equivalence_key="k" * 513), SCHEMA, "run_equivalence_key"),
    "invoker with newline": (changed(invoker="a\nb"), SCHEMA, "invoker"),
    "notes too long": (changed(notes="n" * 5000), SCHEMA, "notes"),
    "outputs empty": (changed(output_ids=[]), SCHEMA, "output_ids"),
    "outputs as text": (changed(output_ids="outlet_catalogue"), SCHEMA, "output_ids"),
    "outputs with null": (changed(output_ids=[None]), SCHEMA, "output_ids"),
    "outputs with a climber": (changed(output_ids=["../outlet_catalogue"]), SCHEMA, "output_ids"),
    "outputs with a space": (changed(output_ids=["outlet_catalogue "]), SCHEMA, "output_ids"),
    "outputs by the thousand": (changed(output_ids=[f"o{n}" for n in range(4097)]), SCHEMA, "output_ids"),
    # planning
    "output unknown": (changed(output_ids=["no_such_output"]), "UNKNOWN_OUTPUT_ID", "no_such_output"),
    "output unknown among known": (changed(output_ids=["outlet_catalogue", "nope"]), "UNKNOWN_OUTPUT_ID", "nope"),
    "output id is a gate": (changed(output_ids=["gate.layer1.1A.validation"]), "UNKNOWN_OUTPUT_ID", "gate.layer1"),
    "output per day": (changed(output_ids=["s5_selection_log_2B"]), "OUTPUT_NOT_ADDRESSABLE", "utc_day"),
    "output per day, optional among good": (
        changed(output_ids=["outlet_catalogue", "s6_edge_log_2B"]),
        "OUTPUT_NOT_ADDRESSABLE",
        "utc_day",
    ),
    "output per release": (changed(output_ids=["tz_world_release_2A"]), "OUTPUT_NOT_ADDRESSABLE", "release_tag"),
    "outputs without any gate": (
        changed(output_ids=["engine_run_log", "engine_input_snapshot"]),
        "NO_REQUIRED_GATES",
        "engine_run_log",
    ),
    # engine run root
    "root elsewhere": (root(lambda _: "/etc"), PLACE, "engine_roots"),
    "root of everything": (root(lambda _: "/"), PLACE, "engine_roots"),
    "root relative": (root(lambda _: "runs/x"), PLACE, "engine_roots"),
    "root climbs": (root(lambda place: place + "/../../../elsewhere"), PLACE, ".."),
    "root climbs and comes back": (root(lambda place: place + "/../" + Path(place).name), PLACE, ".."),
    "root is a prefix sibling": (
        root(lambda place: str(Path(place).parents[1]) + "10/local_full_run-1/" + Path(place).name),
        PLACE,
        "engine_roots",
    ),
    "root with other case": (root(lambda place: place.replace("/runs/", "/RUNS/")), PLACE, "engine_roots"),
    "root on s3": (root(lambda place: "s3://bucket" + place), PLACE, "engine_roots"),
    "root on s3 that climbs": (root(lambda place: "s3://bucket" + place + "/../x"), PLACE, "normalised"),
    "root on s3 without a bucket": (root(lambda place: "s3://" + place), PLACE, "bucket"),
    "root on http": (root(lambda _: "http://example.org/runs"), PLACE, "scheme"),
    "root link-local": (root(lambda _: "http://169.254.169.254/latest/meta-data/"), PLACE, "scheme"),
    "root link-local as a file host": (root(lambda place: "file://169.254.169.254" + place), PLACE, "scheme"),
    "root as a file host": (root(lambda place: "file://localhost" + place), PLACE, "scheme"),
    "root with a scheme in capitals": (root(lambda place: "FILE://" + place), PLACE, "scheme"),
    "root with a double scheme": (root(lambda place: "file://file://" + place), PLACE, "scheme"),
    "root with a backslash": (root(lambda place: place + "\\..\\.."), PLACE, "backslash"),
    "root with a wildcard": (root(lambda place: place[:-3] + "*"), PLACE, "wildcard"),
    "root with nul": (root(lambda place: place + "\0"), SCHEMA, "engine_run_root"),
    "root with newline": (root(lambda place: place + "\n"), SCHEMA, "engine_run_root"),
    "root empty": (root(lambda _: ""), SCHEMA, "engine_run_root"),
    "root blank": (root(lambda _: " "), PLACE, "engine_roots"),
    "root very long": (root(lambda place: place + "/a" * 2000), SCHEMA, "engine_run_root"),
    "root of the store": (root(lambda place: str(Path(place).parents[2] / "object-store")), PLACE, "engine_roots"),
    "root percent encoded": (
        root(lambda place: "file://" + place.replace("/runs/", "/%72uns/")),
        PLACE,
        "engine_roots",
    ),
    # envelopes
    **{
        f"envelope without {key}": (enveloped(leave_out=key), ENVELOPE, key)
        for key in ("topic", "message_id", "published_at_utc", "partition_key", "payload")
    },
    "envelope without attributes": (enveloped(leave_out="attributes"), KIND, "kind"),
    "envelope with one more field": (enveloped(signature="x"), ENVELOPE, "signature"),
    "envelope with null payload": (enveloped(payload=None), ENVELOPE, "payload"),
    "envelope with a list as payload": (enveloped(payload=[]), ENVELOPE, "payload"),
    "envelope with text as payload": (enveloped(payload="{}"), ENVELOPE, "payload"),
    "envelope with an empty payload": (enveloped(payload={}), SCHEMA, "run_equivalence_key"),
    "envelope in an envelope": (lambda r: encoded(envelope(r, payload=envelope(r))), SCHEMA, "run_equivalence_key"),
    "envelope with a numeric message id": (enveloped(message_id=7), ENVELOPE, "message_id"),
    "envelope with a control character": (enveloped(message_id="a\nb"), ENVELOPE, "message_id"),
    "envelope with a long message id": (enveloped(message_id="m" * 300), ENVELOPE, "message_id"),
    "envelope with a lone surrogate": (
        lambda r: encoded(envelope(r, message_id="@")).replace(b'"@"', b'"\\ud800"'),
        ENVELOPE,
        "message_id",
    ),
    "envelope with a naive time": (enveloped(published_at_utc="2026-01-01T00:00:00"), ENVELOPE, "published_at_utc"),
    "envelope of another topic without a message id": (
        enveloped(topic="orders.v1", leave_out="message_id"),
        ENVELOPE,
        "message_id",
    ),
    "envelope of another topic with one more field": (enveloped(topic="orders.v1", x=1), ENVELOPE, "x"),
    "envelope of a topic that is a number": (enveloped(topic=7), ENVELOPE, "topic"),
    "envelope of no kind": (enveloped(attributes={}), KIND, "kind"),
    "envelope of an unknown kind": (enveloped(attributes={"kind": "RUN_REQUEST_V2"}), KIND, "RUN_REQUEST_V2"),
    "envelope of a kind in lower case": (enveloped(attributes={"kind": "run_request"}), KIND, "run_request"),
    "envelope of a kind with a space": (enveloped(attributes={"kind": "READY "}), KIND, "READY"),
    "envelope of a kind that is a list": (enveloped(attributes={"kind": ["READY"]}), KIND, "kind"),
    "envelope with attributes as text": (enveloped(attributes="RUN_REQUEST"), KIND, "kind"),
    "envelope key in a bare request": (changed(topic=TOPIC), KIND, "kind"),
    "re-emit of a run that nobody knows": (
        enveloped(attributes={"kind": "REEMIT_REQUEST"}, payload={"run_id": "0" * 32, "reemit_kind": "READY_ONLY"}),
        "RUN_NOT_FOUND",
        "0" * 32,
    ),
    "re-emit without a run": (
        enveloped(attributes={"kind": "REEMIT_REQUEST"}, payload={"reemit_kind": "READY_ONLY"}),
        SCHEMA,
        "run_id",
    ),
    "re-emit of a run id that leads elsewhere": (
        enveloped(attributes={"kind": "REEMIT_REQUEST"}, payload={"run_id": "../" * 10 + "xx", "reemit_kind": "BOTH"}),
        SCHEMA,
        "run_id",
    ),
    "re-emit of an unknown kind": (
        enveloped(attributes={"kind": "REEMIT_REQUEST"}, payload={"run_id": "0" * 32, "reemit_kind": "ALL"}),
        SCHEMA,
        "reemit_kind",
    ),
    "re-emit with one more field": (
        enveloped(
            attributes={"kind": "REEMIT_REQUEST"}, payload={"run_id": "0" * 32, "reemit_kind": "BOTH", "force": True}
        ),
        SCHEMA,
        "force",
    ),
    "re-emit that is dry as a text": (
        enveloped(
            attributes={"kind": "REEMIT_REQUEST"}, payload={"run_id": "0" * 32, "reemit_kind": "BOTH", "dry_run": "no"}
        ),
        SCHEMA,
        "dry_run",
    ),
    "re-emit with the payload of a run request": (enveloped(attributes={"kind": "REEMIT_REQUEST"}), SCHEMA, "run_id"),
    "arrival without a root": (arrived(), SCHEMA, "engine_run_root"),
    "arrival at an empty root": (arrived(engine_run_root=""), SCHEMA, "engine_run_root"),
    "arrival at a long root": (arrived(engine_run_root="/" + "r" * 2048), SCHEMA, "engine_run_root"),
    "arrival at a root that is a list": (arrived(engine_run_root=["/r"]), SCHEMA, "engine_run_root"),
    "arrival at a root that is not allowed": (arrived(engine_run_root="/etc"), PLACE, "engine_roots"),
    "arrival at a root that leads elsewhere": (arrived(engine_run_root="runs/../../etc"), PLACE, ".."),
    "arrival of a scheme that is not served": (arrived(engine_run_root="http://a/b"), PLACE, "scheme"),
    "arrival for a run id that leads elsewhere": (arrived(engine_run_root="/r", run_id="../../x"), SCHEMA, "run_id"),
    "arrival with a verdict": (arrived(engine_run_root="/r", passed=True), SCHEMA, "passed"),
    "arrival with a null": (arrived(engine_run_root="/r", run_id=None), SCHEMA, "run_id"),
    "arrival with the payload of a run request": (
        enveloped(attributes={"kind": "EVIDENCE_ARRIVED"}), SCHEMA, "run_equivalence_key",
    ),
    "arrival in another version": (
        enveloped(attributes={"kind": "EVIDENCE_ARRIVED", "version": "1"}, payload={"engine_run_root": "/r"}), KIND,
        "version",
    ),
}  # fmt: skip
IGNORED: dict[str, Make] = {
    kind: enveloped(attributes={"kind": kind}, payload={"run_id": "0" * 32})
    for kind in ("READY", "TERMINAL", "READY_REEMIT", "TERMINAL_REEMIT", "REQUEST_REJECTED")
} | {
    "READY with the payload of a request": enveloped(attributes={"kind": "READY"}),
    "READY with a list as message id": enveloped(attributes={"kind": "READY"}, message_id=[1]),
    "arrival where no run waits": lambda request: arrived(engine_run_root=request["engine_run_root"] + "/x")(request),
    "another topic": enveloped(topic="fp.bus.control.v2"),
    "another topic and kind": enveloped(topic="orders.v1", attributes={"kind": "ORDER_PLACED"}, payload={"order": 7}),
    "another topic without a kind": enveloped(topic="orders.v1", attributes={}, payload={}),
    "another topic in another version": enveloped(
        topic="orders.v1", attributes={"kind": "RUN_REQUEST", "contract_version": "9"}
    ),
}
