"""Hostile records on the control bus: each gets its disposition, nothing else is touched, the daemon goes on.

All records of one table are dropped into one world and drained by one ``serve``; the tests look at what became of each.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from support import World

from scenario_runner.cli.runs import list_runs
from scenario_runner.contracts.ids import run_id_of

pytestmark = pytest.mark.integration

SMALL: dict[str, Any] = {
    "outputs": ["outlet_catalogue"],
    "members": 2,
    "member_bytes": 64,
    "parts": 2,
    "part_bytes": 64,
}
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


def name_of(case: str) -> str:
    return (
        "m-"
        + "".join(char if char.isascii() and char.isalnum() else f"-{ord(char):x}-" for char in case)[:90]
        + ".json"
    )


def rows(world: World, query: str, *parameters: Any) -> list[Any]:
    with closing(sqlite3.connect(world.database)) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute(query, parameters).fetchall()


@dataclass
class Drained:
    """A world after one ``serve`` over many records."""

    world: World
    sent: dict[str, bytes]
    good: list[str]
    code: int
    log: str

    @cached_property
    def records(self) -> list[Any]:
        return rows(self.world, "SELECT * FROM intake_records")

    @cached_property
    def reasons(self) -> list[dict[str, Any]]:
        return self.world.rejected()

    def record(self, name: str) -> Any:
        found = [row for row in self.records if row["record_key"].startswith(f"spool/{name}#")]
        assert len(found) == 1, f"{name} has {len(found)} dispositions"
        return found[0]

    def reason(self, name: str) -> dict[str, Any]:
        found = [item for item in self.reasons if item["record"] == name]
        assert len(found) == 1, f"{name} has {len(found)} reason files"
        return found[0]

    def assert_refused(self, name: str, reason_code: str, says: str, disposition: str = "REJECTED") -> None:
        record, reason, sent = self.record(name), self.reason(name), self.sent[name]
        assert (record["disposition"], record["reason_code"]) == (disposition, reason_code), record["detail"]
        assert (reason["disposition"], reason["reason_code"]) == (disposition, reason_code)
        assert reason["sentence"]
        assert says in reason["detail"]
        assert (self.world.bus / "rejected" / name).read_bytes() == sent
        assert not (self.world.bus / "requests" / name).exists()
        letters = rows(self.world, "SELECT raw FROM dead_letters WHERE record_key = ?", record["record_key"])
        assert [bytes(row["raw"]) for row in letters] == [sent[:MIB]]


def drain(world: World, cases: dict[str, Make], good: list[dict[str, Any]]) -> Drained:
    """Drop a good request, the hostile ones, and the other good ones; drain once."""
    sent: dict[str, bytes] = {}
    for case, make in cases.items():
        # its own key, unless the case is about the key, and never the good run's
        sent[name_of(case)] = make(good[0]["request"] | {"run_equivalence_key": f"hostile {case!a}"[:500]})
    for name, data in sent.items():
        world.drop(data, name)
    for number, item in enumerate(good):
        world.drop(item["request"], f"{'az'[number % 2]}-good-{number}.json")
    served = world.serve()
    return Drained(world, sent, [item["run_id"] for item in good], served.returncode, served.stderr.decode())


@pytest.fixture(scope="module")
def drained(tmp_path_factory: pytest.TempPathFactory) -> Drained:
    world = World(tmp_path_factory.mktemp("requests") / "world")
    good = [world.make_run(f"good-{number}", data_seed=number + 1, **SMALL) for number in range(3)]
    (world.root / "runs10").mkdir()
    return drain(world, {case: make for case, (make, _, _) in REJECTED.items()} | IGNORED, good)


def test_the_daemon_goes_on_and_the_good_requests_dropped_along_become_ready(drained: Drained) -> None:
    assert drained.code == 0, drained.log[-2000:]
    ready = {item["payload"]["run_id"] for item in drained.world.signals("READY")}
    assert ready == set(drained.good)
    assert "Traceback" not in drained.log


@pytest.mark.parametrize("case", REJECTED)
def test_a_hostile_record_is_rejected_with_its_reason_and_kept(drained: Drained, case: str) -> None:
    _, reason_code, says = REJECTED[case]
    drained.assert_refused(name_of(case), reason_code, says)


@pytest.mark.parametrize("case", IGNORED)
def test_what_is_not_for_us_is_ignored_counted_and_not_kept(drained: Drained, case: str) -> None:
    name, record = name_of(case), drained.record(name_of(case))
    assert (record["disposition"], record["run_id"], record["reason_code"]) == ("IGNORED", "", "")
    key = record["record_key"]
    assert rows(drained.world, "SELECT * FROM dead_letters WHERE record_key = ?", key) == []
    refusals = drained.world.signals("REQUEST_REJECTED")
    assert key not in {item["payload"]["record_key"] for item in refusals}
    assert (drained.world.bus / "consumed" / name).read_bytes() == drained.sent[name]
    assert name not in {item["record"] for item in drained.world.rejected()}


def test_no_hostile_record_makes_a_run_or_a_document(drained: Drained) -> None:
    runs = {row["run_id"] for row in rows(drained.world, "SELECT run_id FROM runs")}
    assert runs == set(drained.good)
    for folder in ("run_plan", "run_record", "run_status", "run_facts_view", "ready_signal", "quarantine"):
        place = drained.world.ledger / folder
        names = {path.name.partition(".")[0] for path in place.iterdir()} if place.is_dir() else set()
        assert names <= runs, folder
    assert {path.name for path in drained.world.ledger.iterdir()} <= {
        "run_plan",
        "run_record",
        "run_status",
        "run_facts_view",
        "ready_signal",
        "instance_receipts",
        "interface_pack",
        ".private",
    }
    receipts = list((drained.world.ledger / "instance_receipts").rglob("instance_receipt.json"))
    assert len(receipts) == len(drained.good)
    beside = {path.name for path in drained.world.root.iterdir()}
    assert beside <= {
        "runs",
        "runs10",
        "object-store",
        "control-bus",
        "requests-made",
        "wiring.yaml",
        "policy.yaml",
        "authority.db",
        "authority.db-wal",
        "authority.db-shm",
    }


def test_every_record_has_exactly_one_disposition_and_none_is_left(drained: Drained) -> None:
    assert not list((drained.world.bus / "requests").iterdir())
    counted = rows(drained.world, "SELECT disposition, count(*) FROM intake_records GROUP BY disposition")
    assert {row[0]: row[1] for row in counted} == {
        "ACCEPTED": len(drained.good),
        "REJECTED": len(REJECTED),
        "IGNORED": len(IGNORED),
    }
    assert rows(drained.world, "SELECT count(*) FROM dead_letters")[0][0] == len(REJECTED)


def test_a_refused_record_that_names_a_run_id_is_told_on_the_bus_once(drained: Drained) -> None:
    signals = drained.world.signals("REQUEST_REJECTED")
    keys = [item["payload"]["record_key"] for item in signals]
    assert len(keys) == len(set(keys))
    assert not set(drained.good) & {item["payload"]["run_id"] for item in signals}
    assert {item["partition_key"] == item["payload"]["run_id"] for item in signals} == {True}


# --- unusual requests that are nevertheless right


def test_unusual_but_valid_requests_become_ready(world: World) -> None:
    seeds = world.make_run("seed", seed=2**64 - 1, data_seed=1, **SMALL)
    padded = world.make_run("padded", data_seed=2, **SMALL)
    keyed = world.make_run("ключ \u00a0 \U0001f600", data_seed=3, **SMALL)
    place = world.make_run("place", data_seed=4, **SMALL)
    wrapped = world.make_run("wrapped", data_seed=5, **SMALL)
    world.drop(seeds["request"], "seed.json")
    world.drop(encoded(padded["request"]).ljust(MIB), "padded.json")
    world.drop(json.dumps(keyed["request"], ensure_ascii=False).encode(), "keyed.json")
    slashed = place["engine_run_root"].replace("/runs/", "//runs/.//") + "/"
    world.drop(place["request"] | {"engine_run_root": f"file://{slashed}"}, "place.json")
    world.drop(
        envelope(wrapped["request"], attributes={"kind": "RUN_REQUEST", "traceparent": "x", "more": [1.5, None]}),
        "wrapped.json",
    )
    assert world.serve().returncode == 0
    assert {item["payload"]["run_id"] for item in world.signals("READY")} == {
        made["run_id"] for made in (seeds, padded, keyed, place, wrapped)
    }


# --- the same key again


def test_a_repeated_intent_is_a_duplicate_and_another_intent_a_conflict(world: World) -> None:
    made = world.make_run("same", **SMALL)
    good: Request = made["request"]
    assert world.serve().returncode == 0
    world.drop(good, "0-first.json")
    shifted = {
        "window_start_utc": "2026-01-01T02:00:00+02:00",
        "window_end_utc": "2026-01-01T19:00:00.000-05:00",
        "window_tz": "UTC",
    }
    duplicates = {
        "same bytes": good,
        "other offset": good | {"window": shifted},
        "repeated output": good | {"output_ids": ["outlet_catalogue", "outlet_catalogue"]},
        "other invoker": good | {"invoker": "somebody else", "notes": "n", "request_id": "r"},
        "other spelling of the root": good | {"engine_run_root": "file://" + good["engine_run_root"] + "/./"},
    }
    conflicts = {
        "seed": good | {"seed": 8},
        "manifest": good | {"manifest_fingerprint": "0" * 64},
        "parameters": good | {"parameter_hash": "0" * 64},
        "scenario": good | {"scenario": {"scenario_id": "other"}},
        "scenario set": good | {"scenario": {"scenario_set": [made["scenario_id"]]}},
        "window": good | {"window": good["window"] | {"window_end_utc": "2026-01-03T00:00:00Z"}},
        "outputs": good | {"output_ids": ["iso_country_reference", "outlet_catalogue"]},
        "strategy": good | {"requested_strategy": "AUTO"},
        "root": good | {"engine_run_root": str(world.runs)},
        "no outputs named": {key: value for key, value in good.items() if key != "output_ids"},
    }
    for case, document in {**duplicates, **conflicts}.items():
        world.drop(document, name_of(case))
    assert world.serve().returncode == 0
    before = {
        path: path.read_bytes() for path in world.ledger.rglob("*") if path.is_file() and ".private" not in path.parts
    }
    for case, document in conflicts.items():  # and again, now that the run is final
        world.drop(document, "late-" + name_of(case))
    assert world.serve().returncode == 0
    after = {
        path: path.read_bytes() for path in world.ledger.rglob("*") if path.is_file() and ".private" not in path.parts
    }
    assert after == before
    found = {
        row["record_key"].partition("#")[0].removeprefix("spool/"): (row["disposition"], row["reason_code"])
        for row in rows(world, "SELECT * FROM intake_records")
    }
    assert found.pop("0-first.json") == ("ACCEPTED", "")
    assert {name: found.pop(name) for name in map(name_of, duplicates)} == dict.fromkeys(
        map(name_of, duplicates), ("DUPLICATE", "")
    )
    assert set(found.values()) == {("CONFLICT", "EQUIV_KEY_COLLISION")}
    assert {item["reason_code"] for item in world.rejected()} == {"EQUIV_KEY_COLLISION"}
    assert len(world.rejected()) == 2 * len(conflicts)
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [made["run_id"]]


# --- who may ask, and what the policy says


def test_only_listed_invokers_get_runs(tmp_path: Path) -> None:
    world = World(tmp_path / "w", {"auth_mode": "allowlist", "auth_allowlist": ["alice", "make_engine_run"]})
    made = world.make_run(**SMALL)
    good: Request = made["request"]
    denied: dict[str, Make] = {
        "nobody": without("invoker"),
        "mallory": changed(invoker="mallory"),
        "other case": changed(invoker="Alice"),
        "with a space": changed(invoker="alice "),
        "list as text": changed(invoker="alice,make_engine_run"),
        "look-alike": changed(invoker="\u0430lice"),
        "named by the envelope": lambda r: encoded(
            envelope(
                {k: v for k, v in r.items() if k != "invoker"}, attributes={"kind": "RUN_REQUEST", "invoker": "alice"}
            )
        ),
    }
    done = drain(world, denied, [made])
    assert done.code == 0, done.log[-2000:]
    for case in denied:
        done.assert_refused(name_of(case), "AUTH_DENIED", "invoker")
    assert [row["run_id"] for row in rows(world, "SELECT run_id FROM runs")] == [run_id_of(good["run_equivalence_key"])]
    assert len(world.signals("READY")) == 1


@pytest.mark.parametrize("allowlist", [[""], ["", " "], "${SR_TEST_UNSET_INVOKERS:-} , "])
def test_an_empty_entry_of_the_allowlist_never_lets_an_unnamed_caller_in(tmp_path: Path, allowlist: Any) -> None:
    world = World(tmp_path / "w", {"auth_mode": "allowlist", "auth_allowlist": allowlist})
    request = world.make_run(**SMALL)["request"]
    request.pop("invoker")
    world.drop(request)
    served = world.serve()
    assert served.returncode in (0, 2)  # refused at start-up, or the request is refused
    assert world.signals("READY") == []


def test_a_request_that_insists_on_reuse_is_refused_when_the_policy_denies_it(tmp_path: Path) -> None:
    world = World(tmp_path / "w", policy_changes={"reuse_policy": "DENY"})
    made = world.make_run(**SMALL)
    world.drop(made["request"])
    world.drop(made["request"] | {"requested_strategy": "AUTO"}, "auto.json")
    assert world.serve().returncode == 0
    codes = sorted(item["reason_code"] for item in world.rejected())
    assert codes == ["ENGINE_COMMAND_MISSING", "REUSE_NOT_ALLOWED"]
    assert world.signals("READY") == []


def test_a_request_without_outputs_under_a_policy_without_any_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path / "w", policy_changes={"traffic_output_ids": []})
    request = world.make_run(**SMALL)["request"]
    request.pop("output_ids")
    world.drop(request)
    assert world.serve().returncode == 0
    assert [item["reason_code"] for item in world.rejected()] == ["NO_OUTPUTS"]


def test_an_engine_root_behind_a_symlink_is_quarantined_wherever_the_link_is(world: World) -> None:
    made = {name: world.make_run(name, data_seed=number, **SMALL) for number, name in enumerate("abcd", 1)}
    real = {name: Path(item["engine_run_root"]) for name, item in made.items()}
    outside = world.root / "outside"
    outside.mkdir()
    real["a"].rename(outside / "a")
    real["a"].symlink_to(outside / "a")  # the run root itself
    (world.runs / "linked").symlink_to(world.runs / "local_full_run-1")  # a parent, within the allowed root
    world.drop(made["a"]["request"], "a.json")
    world.drop(made["b"]["request"] | {"engine_run_root": str(world.runs / "linked" / real["b"].name)}, "b.json")
    real["c"].rename(real["c"].with_name("moved"))
    real["c"].symlink_to("moved")  # to a sibling
    world.drop(made["c"]["request"], "c.json")
    world.drop(made["d"]["request"] | {"engine_run_root": f"{real['d']}/run_receipt.json"}, "d.json")  # a file
    assert world.serve().returncode == 0
    states = {name: world.query("status", item["run_id"])[1]["state"] for name, item in made.items()}
    assert states == dict.fromkeys("abcd", "QUARANTINED")
    assert world.signals("READY") == []


# --- files that are no records


@pytest.fixture(scope="module")
def oddities(tmp_path_factory: pytest.TempPathFactory) -> Drained:
    world = World(tmp_path_factory.mktemp("oddities") / "world")
    good = [world.make_run(f"good-{number}", data_seed=number + 1, **SMALL) for number in range(3)]
    request = encoded(good[0]["request"] | {"run_equivalence_key": "through a link"})
    world.drop(b"x", "first.json").unlink()
    spool = world.bus / "requests"
    (world.root / "elsewhere.json").write_bytes(request)
    (spool / "link.json").symlink_to(world.root / "elsewhere.json")
    (spool / "dangling.json").symlink_to("nowhere")
    (spool / "loop.json").symlink_to("loop.json")
    (spool / "to-a-folder.json").symlink_to(world.root)
    os.mkfifo(spool / "fifo.json")
    (spool / "folder.json").mkdir()
    (spool / "folder.json" / "inside.json").write_bytes(request)
    with closing(socket.socket(socket.AF_UNIX)) as server:
        here = Path.cwd()
        os.chdir(spool)  # a socket's name is short
        try:
            server.bind("socket.json")
        finally:
            os.chdir(here)
    with (spool / "sparse.json").open("wb") as file:
        file.truncate(1 << 40)
    for name in ("notes.txt", ".hidden.json", "half.json.tmp", "UPPER.JSON"):
        (spool / name).write_bytes(request)
    Path(os.fsdecode(os.fsencode(spool) + b"/not-\xff\xfe-utf8.json")).write_bytes(b"not json")
    (spool / "new\nline.json").write_bytes(b"not json")
    (spool / ("n" * 250 + ".json")).write_bytes(b"not json")
    (spool / "quote\"'$(id)`;.json").write_bytes(b"not json")
    done = drain(world, {}, good)
    world.drop(good[1]["request"] | {"run_equivalence_key": "same name", "seed": "7"}, "a-good-0.json")
    world.drop(encoded(good[1]["request"]) + b" ", "a-good-0.json".replace("a-good-0", "z-good-1"))
    again = world.serve()
    return Drained(world, done.sent, done.good, max(done.code, again.returncode), done.log + again.stderr.decode())


def test_what_is_no_readable_file_is_rejected_and_the_good_requests_become_ready(oddities: Drained) -> None:
    assert oddities.code == 0, oddities.log[-2000:]
    assert {item["payload"]["run_id"] for item in oddities.world.signals("READY")} == set(oddities.good)
    for name in (
        "link.json",
        "dangling.json",
        "loop.json",
        "to-a-folder.json",
        "fifo.json",
        "folder.json",
        "socket.json",
    ):
        assert oddities.record(name)["reason_code"] == "RECORD_UNREADABLE", name
        assert oddities.reason(name)["disposition"] == "REJECTED"
        assert os.path.lexists(oddities.world.bus / "rejected" / name)
    assert (oddities.world.root / "elsewhere.json").exists()
    assert oddities.record("sparse.json")["reason_code"] == "RECORD_TOO_LARGE"
    assert (oddities.world.bus / "rejected" / "sparse.json").stat().st_size == 1 << 40


def test_names_of_any_bytes_are_served(oddities: Drained) -> None:
    kept = set(os.listdir(os.fsencode(oddities.world.bus / "rejected")))
    assert {b"not-\xff\xfe-utf8.json", b"new\nline.json", b"n" * 250 + b".json", b"quote\"'$(id)`;.json"} <= kept
    refused = [item for item in oddities.world.rejected() if item["reason_code"] == "RECORD_NOT_JSON"]
    assert len(refused) == 4


def test_what_is_not_named_like_a_record_is_left_alone(oddities: Drained) -> None:
    left = {path.name for path in (oddities.world.bus / "requests").iterdir()}
    assert left == {"notes.txt", ".hidden.json", "half.json.tmp", "UPPER.JSON"}


def test_the_same_name_with_other_contents_is_another_record(oddities: Drained) -> None:
    found = [
        (row["record_key"].partition("#")[0], row["disposition"])
        for row in rows(oddities.world, "SELECT * FROM intake_records WHERE record_key LIKE '%-good-%'")
    ]
    assert sorted(found) == [
        ("spool/a-good-0.json", "ACCEPTED"),
        ("spool/a-good-0.json", "REJECTED"),
        ("spool/a-good-2.json", "ACCEPTED"),
        ("spool/z-good-1.json", "ACCEPTED"),
        ("spool/z-good-1.json", "DUPLICATE"),
    ]
    consumed = oddities.world.bus / "consumed"
    assert len([path for path in consumed.iterdir() if path.name.startswith("z-good-1")]) == 2  # none overwritten


# --- poison: one record each, in a world of its own, because it once stopped the daemon for good


def assert_a_poison_does_not_stop_the_daemon(world: World, poison: Callable[[Path], object]) -> None:
    made = world.make_run(**SMALL)
    world.drop(made["request"], "z-good.json")
    poison(world.bus / "requests")
    served = world.serve()
    assert b"Traceback" not in served.stderr, served.stderr.decode()[-1500:]
    assert served.returncode == 0
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [made["run_id"]]
    assert not list((world.bus / "requests").iterdir())


def test_a_signal_whose_message_id_is_no_unicode_text_does_not_stop_the_daemon(world: World) -> None:
    record = b'{"attributes": {"kind": "READY"}, "message_id": "\\ud800", "payload": {}}'
    assert_a_poison_does_not_stop_the_daemon(world, lambda spool: (spool / "a.json").write_bytes(record))


def test_a_link_with_a_name_that_is_not_utf_8_does_not_stop_the_daemon(world: World) -> None:
    assert_a_poison_does_not_stop_the_daemon(
        world, lambda spool: os.symlink(b"/nowhere", os.fsencode(spool) + b"/a\xff.json")
    )


def test_a_signal_with_nested_lists_of_any_depth_does_not_stop_the_daemon(world: World) -> None:
    def poison(spool: Path) -> None:
        for depth in range(850, 1000, 3):
            text = f'{{"attributes": {{"kind": "READY"}}, "message_id": {"[" * depth}{"]" * depth}, "payload": {{}}}}'
            (spool / f"a{depth}.json").write_text(text)

    assert_a_poison_does_not_stop_the_daemon(world, poison)


def test_the_longest_name_used_twice_does_not_stop_the_daemon(world: World) -> None:
    name = "\u00e9" * 125 + ".json"  # 255 bytes in 130 characters
    for folder in ("consumed", "rejected"):
        (world.bus / folder).mkdir(parents=True)
        (world.bus / folder / name).write_bytes(b"an older one")
    assert_a_poison_does_not_stop_the_daemon(world, lambda spool: (spool / name).write_bytes(b"not json"))
    assert (world.bus / "rejected" / name).read_bytes() == b"an older one"


def test_a_rejected_record_that_is_dropped_again_is_judged_again(tmp_path: Path) -> None:
    world = World(tmp_path / "w", {"auth_mode": "allowlist", "auth_allowlist": ["somebody else"]})
    made = world.make_run(**SMALL)
    world.drop(made["request"])
    assert world.serve().returncode == 0
    assert [item["reason_code"] for item in world.rejected()] == ["AUTH_DENIED"]
    world.wiring_changes = {}
    world.write_profiles()  # the operator mends the profile and moves the file back
    (world.bus / "rejected/request.json").rename(world.bus / "requests/request.json")
    assert world.serve().returncode == 0
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [made["run_id"]]


def test_a_hard_link_whose_file_is_rewritten_after_its_admission_is_a_record_of_its_own(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    made = world.make_run("linked", outputs=["outlet_catalogue"], members=3, member_bytes=64, parts=2, part_bytes=64)
    mine = world.root / "mine.json"
    dropped = world.bus / "requests" / "request.json"
    dropped.parent.mkdir(parents=True)
    for key in ("first", "second"):
        mine.write_text(json.dumps(made["request"] | {"run_equivalence_key": key}), "utf-8")
        os.link(mine, dropped)
        world.serve()
        assert not dropped.exists()
    assert {item["run_equivalence_key"] for item in list_runs(str(world.wiring), None, 10)} == {"first", "second"}


@pytest.mark.parametrize("key", ["contract_version", "schema_version", "version"])
@pytest.mark.parametrize(("value", "code"), [("9.9", 1), ("v7", 1), (99, 1), ("v0", 0), (0, 0)])
def test_another_contract_version_is_refused_by_name(world: World, key: str, value: object, code: int) -> None:
    made = world.make_run("versioned", outputs=["outlet_catalogue"], members=3, member_bytes=64)
    envelope = {
        "topic": "fp.bus.control.v1", "message_id": "m1", "published_at_utc": "2026-01-01T00:00:00Z",
        "attributes": {"kind": "RUN_REQUEST", key: value}, "partition_key": "p", "payload": made["request"],
    }  # fmt: skip
    file = world.root / "envelope.json"
    file.write_text(json.dumps(envelope), "utf-8")
    done = world.command("submit", str(file), "--wiring", str(world.wiring))
    assert done.returncode == code
    assert (b"KIND_UNKNOWN" in done.stderr) is bool(code)
    world.drop(envelope)
    world.serve()
    assert [item["reason_code"] for item in world.rejected()] == ["KIND_UNKNOWN"] * code
