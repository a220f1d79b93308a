"""Attacks on flag, index and bundle, and evidence that once stopped the daemon: each ends only its own run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hostile_evidence_support import (
    CONFLICT,
    LARGE,
    MALFORMED,
    MIB,
    MISSING,
    SAYS_NO,
    Drained,
    drain,
    entries_of,
    explain,
    fingerprint,
    flag_of,
    index_of,
    make,
    output_folder,
    state_of,
)
from support import COMMAND, ForkedWorld, World

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.integration


@pytest.fixture
def world(tmp_path: Path) -> World:
    return ForkedWorld(tmp_path / "world")


# --- attacks of our own on flag, index and bundle


def rewrite_flag(change: Callable[[str], str], segment: str = "1A") -> Callable[[dict[str, Any]], None]:
    def damage(made: dict[str, Any]) -> None:
        path = flag_of(made, segment)
        digest = next(word for word in path.read_text("utf-8").replace('"', " ").split() if len(word) == 64)
        path.write_bytes(change(digest).encode("utf-8", "surrogatepass"))

    return damage


def rewrite_index(change: Callable[[Any], Any], segment: str = "2A") -> Callable[[dict[str, Any]], None]:
    def damage(made: dict[str, Any]) -> None:
        path = index_of(made, segment)
        path.write_text(json.dumps(change(json.loads(path.read_bytes()))), "utf-8")

    return damage


def first_entry(**fields: Any) -> Callable[[Any], Any]:
    def change(document: Any) -> Any:
        entries_of(document)[0].update(fields)
        return document

    return change


def one_more(**entry: Any) -> Callable[[Any], Any]:
    def change(document: Any) -> Any:
        entries_of(document).append(entry)
        return document

    return change


def two_lists(document: Any) -> Any:
    return {"items": entries_of(document), "files": entries_of(document)}


def linked(find: Callable[[dict[str, Any]], Path], where: str) -> Callable[[dict[str, Any]], None]:
    """Replace a path by a link to where it was moved: beside it, or out of the run root."""

    def damage(made: dict[str, Any]) -> None:
        path = find(made)
        aside = (
            path.with_name(path.name + ".aside") if where == "beside" else Path(made["engine_run_root"] + ".outside")
        )
        path.rename(aside)
        path.symlink_to(aside)

    return damage


def written(
    name: bytes, data: bytes = b"x", folder: Callable[[dict[str, Any]], Path] = lambda m: flag_of(m).parent
) -> Any:
    def damage(made: dict[str, Any]) -> None:
        path = os.fsencode(folder(made)) + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)

    return damage


def nested_excluded_member(made: dict[str, Any]) -> None:
    """An index-law bundle lists a payload that is named like the flag, and the payload is tampered with."""
    path = index_of(made)
    payload = path.parent / "sub" / "_passed.flag"
    payload.parent.mkdir()
    payload.write_bytes(b"right")
    document = json.loads(path.read_bytes())
    entries_of(document).append({"path": "sub/_passed.flag", "sha256_hex": fingerprint("wrong")})
    path.write_text(json.dumps(document), "utf-8")


ATTACKS: dict[str, tuple[Callable[[dict[str, Any]], object], set[str]]] = {
    # flags: what must never be a pass
    **{
        f"flag {name}": (rewrite_flag(change), {"QUARANTINED", "FAILED"})
        for name, change in {
            "of two lines": lambda h: f"sha256_hex = {h}\nsha256_hex = {'0' * 64}\n",
            "that fails on its second line": lambda h: f"sha256_hex = {h}\nstatus = FAIL\n",
            "with a key twice": lambda h: f'{{"sha256_hex": "{"0" * 64}", "sha256_hex": "{h}"}}',
            "in upper-case json": lambda h: f'{{"sha256_hex": "{h.upper()}"}}',
            "with a byte order mark": lambda h: f"\ufeffsha256_hex = {h}\n",
            "with nul": lambda h: f"sha256_hex = {h}\0\n",
            "in utf-16": lambda h: "".join(f"{char}\0" for char in f"sha256_hex = {h}\n"),
            "with a prefix": lambda h: f"sha256_hex = sha256:{h}\n",
            "in quotes": lambda h: f'sha256_hex = "{h}"\n',
            "with something after": lambda h: f"sha256_hex = {h} # checked\n",
            "one character longer": lambda h: f"sha256_hex = {h}0\n",
            "in full-width digits": lambda h: "sha256_hex = " + "\uff10" * 64,
            "as a list": lambda h: f'["sha256_hex", "{h}"]',
            "as json text": lambda h: f'"sha256_hex = {h}"',
            "with a digest in a list": lambda h: f'{{"sha256_hex": ["{h}"]}}',
            "with null": lambda h: '{"sha256_hex": null}',
            "with the field in upper case": lambda h: f"SHA256_HEX = {h}\n",
            "that says status fail": lambda h: f'{{"sha256_hex": "{h}", "status": "FAIL"}}',
            "that says passed false": lambda h: f'{{"sha256_hex": "{h}", "passed": false}}',
            "that says verdict null": lambda h: f'{{"sha256_hex": "{h}", "verdict": null}}',
            "that says Status FAIL": lambda h: f'{{"sha256_hex": "{h}", "Status": "FAIL"}}',
            "that says ok false": lambda h: f'{{"sha256_hex": "{h}", "ok": false}}',
            "with another digest beside it": lambda h: f'{{"sha256_hex": "{h}", "bundle_digest_sha256": "{"0" * 64}"}}',
            "with nan": lambda h: f'{{"sha256_hex": "{h}", "note": NaN}}',
            "nested deep": lambda h: f'{{"sha256_hex": "{h}", "note": {"[" * 30_000}{"]" * 30_000}}}',
        }.items()
    },
    # flags: white space may or may not be liked
    **{
        f"flag {name}": (rewrite_flag(change), {"QUARANTINED", "READY"})
        for name, change in {
            "with a carriage return": lambda h: f"sha256_hex = {h}\r\n",
            "with white space": lambda h: f"\n  sha256_hex\t=   {h}  \n\n",
            "without white space": lambda h: f"sha256_hex={h}",
            "that says passed true": lambda h: f'{{"sha256_hex": "{h}", "passed": true}}',
        }.items()
    },
    # indexes
    "index with two lists": (rewrite_index(two_lists), {"QUARANTINED"}),
    "index without a known list": (rewrite_index(lambda d: {"contents": entries_of(d)}), {"QUARANTINED"}),
    "index whose list is an object": (rewrite_index(lambda d: {"items": {"0": entries_of(d)[0]}}), {"QUARANTINED"}),
    "index of plain names": (rewrite_index(lambda d: [item["path"] for item in entries_of(d)]), {"QUARANTINED"}),
    "index that is text": (rewrite_index(lambda _: "items"), {"QUARANTINED"}),
    "index that is null": (rewrite_index(lambda _: None), {"QUARANTINED"}),
    "index path null": (rewrite_index(first_entry(path=None)), {"QUARANTINED"}),
    "index path empty": (rewrite_index(first_entry(path="")), {"QUARANTINED"}),
    "index path a list": (rewrite_index(first_entry(path=["a"])), {"QUARANTINED"}),
    "index path with nul": (rewrite_index(first_entry(path="a\0b")), {"QUARANTINED"}),
    "index path with a newline": (rewrite_index(first_entry(path="a\nb")), {"QUARANTINED"}),
    "index path with a backslash": (rewrite_index(first_entry(path="..\\a")), {"QUARANTINED"}),
    "index path with a lone surrogate": (rewrite_index(first_entry(path="\ud800")), {"QUARANTINED"}),
    "index path with a trailing slash": (rewrite_index(one_more(path="checks/")), {"QUARANTINED"}),
    "index path doubled slash": (rewrite_index(one_more(path="checks//summary.bin")), {"QUARANTINED"}),
    "index path a directory": (rewrite_index(one_more(path="checks")), {"QUARANTINED"}),
    "index path below a file": (rewrite_index(one_more(path="Zeta_report.bin/x")), {"QUARANTINED"}),
    "index path one name too long": (rewrite_index(one_more(path="n" * 300)), {"QUARANTINED"}),
    "index names a member in a folder that is absent": (
        rewrite_index(one_more(path="nowhere/at/all.bin", sha256_hex="0" * 64)),
        {"QUARANTINED"},
    ),
    "index path too long": (rewrite_index(one_more(path="/".join(["n" * 200] * 30))), {"QUARANTINED"}),
    "index digest null": (rewrite_index(first_entry(sha256_hex=None)), {"QUARANTINED"}),
    "index digest in upper case": (rewrite_index(first_entry(sha256_hex="A" * 64)), {"QUARANTINED"}),
    "index digest with a newline": (rewrite_index(first_entry(sha256_hex="a" * 64 + "\n")), {"QUARANTINED"}),
    "index digest a number": (rewrite_index(first_entry(sha256_hex=7)), {"QUARANTINED"}),
    "index digest of the other field wrong": (
        rewrite_index(first_entry(bundle_digest_sha256="0" * 64, sha256_hex="0" * 64), "5A"),
        {"QUARANTINED"},
    ),
    "index digest under another name wrong": (rewrite_index(first_entry(sha256="0" * 64)), {"QUARANTINED"}),
    "index lists a nested file named like the flag": (nested_excluded_member, {"QUARANTINED"}),
    "index with a byte order mark": (
        lambda m: index_of(m).write_bytes(b"\xef\xbb\xbf" + index_of(m).read_bytes()),
        {"QUARANTINED"},
    ),
    "index in utf-16": (
        lambda m: index_of(m).write_bytes(index_of(m).read_text("utf-8").encode("utf-16")),
        {"QUARANTINED"},
    ),
    "member digests without one": (
        rewrite_index(lambda d: (entries_of(d)[0].pop("sha256_hex", None), d)[1], "3A"),
        {"QUARANTINED"},
    ),
    # links, wherever they stand on the way
    "bundle root is a link beside": (linked(lambda m: flag_of(m).parent, "beside"), {"QUARANTINED"}),
    "bundle root is a link out": (linked(lambda m: flag_of(m).parent, "outside"), {"QUARANTINED"}),
    "a parent is a link": (linked(lambda m: Path(m["engine_run_root"]) / "data", "beside"), {"QUARANTINED"}),
    "a parent is a link out": (
        linked(lambda m: Path(m["engine_run_root"]) / "data/layer1", "outside"),
        {"QUARANTINED"},
    ),
    "index is a link": (linked(index_of, "beside"), {"QUARANTINED"}),
    "output directory is a link": (linked(output_folder, "outside"), {"QUARANTINED"}),
    "a parent is a file": (
        lambda m: (
            shutil.rmtree(flag_of(m).parents[1]),
            Path(m["engine_run_root"], "data/layer1/1A/validation").touch(),
        ),
        {"QUARANTINED", "FAILED"},
    ),
    # what lies in a bundle or an output directory
    "bundle holds one more file": (written(b"more.bin"), {"QUARANTINED"}),
    "bundle holds a nested flag": (written(b"sub/_passed.flag"), {"QUARANTINED"}),
    "bundle holds a name that is not utf-8": (written(b"\xff\xfe.bin"), {"QUARANTINED"}),
    "bundle holds a name with a newline": (written(b"a\nb.bin"), {"QUARANTINED"}),
    "bundle holds a name with a backslash": (written(b"a\\b.bin"), {"QUARANTINED"}),
    "bundle holds a dangling link": (lambda m: (flag_of(m).parent / "x").symlink_to("nowhere"), {"QUARANTINED"}),
    "bundle holds a fifo": (lambda m: os.mkfifo(flag_of(m).parent / "x"), {"QUARANTINED"}),
    "bundle nested 40 deep": (written(b"d/" * 40 + b"x"), {"QUARANTINED"}),
    "output holds a name that is not utf-8": (written(b"\xff.bin", folder=output_folder), {"QUARANTINED"}),
    "output holds a name with a newline": (written(b"part\n.bin", folder=output_folder), {"QUARANTINED"}),
    "output holds a fifo": (lambda m: os.mkfifo(output_folder(m) / "x"), {"QUARANTINED"}),
    "output holds a link to a folder": (lambda m: (output_folder(m) / "x").symlink_to("/"), {"QUARANTINED"}),
    "output nested 40 deep": (written(b"d/" * 40 + b"x", folder=output_folder), {"QUARANTINED"}),
    "output of empty folders": (
        lambda m: (shutil.rmtree(output_folder(m)), (output_folder_parent(m) / "seed=7/empty").mkdir(parents=True)),
        {"FAILED", "QUARANTINED"},
    ),
    "output is a file instead of a folder": (
        lambda m: (shutil.rmtree(output_folder(m)), (output_folder_parent(m) / "seed=7").touch()),
        {"QUARANTINED"},
    ),
    # no attacks: these are fine
    "members are hard links": (
        lambda m: os.link(flag_of(m).parent / "Zeta_report.bin", Path(m["engine_run_root"], "elsewhere.bin")),
        {"READY"},
    ),
    "output holds an empty file": (written(b"empty.bin", b"", folder=output_folder), {"READY"}),
    "output nested 20 deep": (written(b"d/" * 20 + b"x", folder=output_folder), {"READY"}),
    "output with a name in many letters": (
        written("\u00fc \U0001f600 'x'.bin".encode(), folder=output_folder),
        {"READY"},
    ),
    "flag in another file beside": (lambda m: Path(m["engine_run_root"], "_passed.flag").touch(), {"READY"}),
}


def output_folder_parent(made: dict[str, Any]) -> Path:
    return next(Path(made["engine_run_root"]).glob("data/layer1/1A/s3_candidate_set_1A/*"))


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Drained:
    world = World(tmp_path_factory.mktemp("attacked") / "world", policy_changes={"evidence_wait_seconds": 0})
    made: dict[tuple[str, str], dict[str, Any]] = {}
    for name, (attack, _) in ATTACKS.items():
        outputs = ["s3_candidate_set_1A", "zone_alloc" if "member digests" in name else "site_timezones"]
        if "other field" in name:
            outputs = ["merchant_class_profile_5A"]
        made[name, ""] = make(world, name, outputs=outputs)
        attack(made[name, ""])
        world.drop(made[name, ""]["request"], f"{len(made):04d}.json")
    served = drain(world)
    return Drained(world, made, {}, served.stderr.decode())


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_the_evidence_ends_as_it_must_and_is_explained(attacked: Drained, name: str) -> None:
    made = attacked.made[name, ""]
    document = explain(attacked.world, made)
    assert document["state"] in ATTACKS[name][1], (document["state"], document.get("detail"))
    ready = made["run_id"] in {
        item["partition_key"] for item in attacked.signals if item["attributes"]["kind"] == "READY"
    }
    assert ready is (document["state"] == "READY")
    if ready:
        assert attacked.world.query("verify", made["run_id"])[0] == 0
    else:
        assert document["reason_code"] in (MALFORMED, CONFLICT, LARGE, MISSING, SAYS_NO)
        blamed = [item for item in (*document["gates"], *document["outputs"]) if item.get("reason_code")]
        assert blamed
        assert all(item["detail"] for item in blamed)


# --- poison: evidence that once stopped the daemon, or would hold a run for ever


def assert_a_poisoned_run_ends_alone(
    world: World, poison: Callable[[dict[str, Any]], object], **options: Any
) -> dict[str, Any]:
    bad = make(world, "bad", **options)
    good = make(world, "good")
    poison(bad)
    world.drop(bad["request"], "a.json")
    served = world.serve()
    world.drop(good["request"], "b.json")
    again = world.serve()
    assert b"Traceback" not in served.stderr + again.stderr, (served.stderr + again.stderr).decode()[-1500:]
    assert (served.returncode, again.returncode) == (0, 0)
    assert [item["payload"]["run_id"] for item in world.signals("READY")] == [good["run_id"]]
    document = explain(world, bad)
    assert document["state"] in ("QUARANTINED", "FAILED"), document
    return document


def test_a_flag_whose_verdict_is_no_unicode_text_ends_only_its_own_run(world: World) -> None:
    assert_a_poisoned_run_ends_alone(world, rewrite_flag(lambda h: f'{{"sha256_hex": "{h}", "status": "\\ud800"}}'))


def test_a_flag_whose_verdict_is_a_control_sequence_is_shown_harmlessly(world: World) -> None:
    assert_a_poisoned_run_ends_alone(world, rewrite_flag(lambda h: f'{{"sha256_hex": "{h}", "status": "\\u001b[2J"}}'))
    text = world.command(
        "explain", next(iter(world.signals("TERMINAL")))["partition_key"], "--wiring", str(world.wiring)
    )
    assert b"\x1b" not in text.stdout


@pytest.mark.parametrize("segment", ["1A", "2A", "2B", "3A"])
def test_an_index_path_of_two_thousand_segments_ends_only_its_own_run(world: World, segment: str) -> None:
    outputs = {"1A": "outlet_catalogue", "2A": "site_timezones", "2B": "s1_site_weights_2B", "3A": "zone_alloc"}
    change = one_more(path="/".join("a" * 2000), sha256_hex="0" * 64)
    assert_a_poisoned_run_ends_alone(world, rewrite_index(change, segment), outputs=[outputs[segment]])


def test_an_index_path_of_seven_million_characters_makes_no_document_of_its_size(world: World) -> None:
    change = one_more(path="a" * 7 * MIB)
    assert_a_poisoned_run_ends_alone(world, rewrite_index(change), outputs=["site_timezones"])
    sizes = {path: path.stat().st_size for path in world.ledger.rglob("*") if path.is_file()}
    assert max(sizes.values()) < 256 * 1024, max(sizes, key=lambda path: sizes[path])


def test_an_output_of_fifteen_hundred_folders_is_read_under_the_usual_limit_of_open_files(world: World) -> None:
    made = make(world, "folders", outputs=["s3_candidate_set_1A"])
    for number in range(1500):
        folder = output_folder(made) / f"day={number}"
        folder.mkdir()
        (folder / "part.bin").write_bytes(b"x")
    world.drop(made["request"])
    served = subprocess.run(
        [
            "bash",
            "-c",
            'ulimit -n 1024; exec "$@"',
            "bash",
            COMMAND,
            "serve",
            "--wiring",
            str(world.wiring),
            "--policy",
            str(world.policy),
            "--until-idle",
        ],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert served.returncode == 0
    assert state_of(world, made) == ("READY", ""), served.stderr.decode()[-800:]
