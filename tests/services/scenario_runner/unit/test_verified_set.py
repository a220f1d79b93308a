"""The verified set: the order of its steps, and that every single guard of that order is held by a test.

``OUT_OF_ORDER`` is one list of things that must not work. It is run twice: against the module as it is, where every
one of them must be answered as written; and against copies of the module with one guard taken out each, where at
least one of them must be answered differently. A guard that could be deleted unseen fails the second test.

Some guards are a second line behind another one (a finished set has nothing left to admit). Those are held by
rows that reach into the set's private state, marked ``tampered``: the guard must hold even if the first line broke.
"""

import ast
import copy
import dataclasses
import hashlib
import inspect
import itertools
import json
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenario_runner.artifacts.base import FileDigest
from scenario_runner.contracts.errors import EvidenceMissing, EvidenceRefused, Refusal, SequenceError
from scenario_runner.contracts.reasons import Reason
from scenario_runner.gates import verified_set
from scenario_runner.gates.laws import GatePaths, Measurement, Members
from scenario_runner.interface_pack.loader import build_pack
from scenario_runner.interface_pack.model import InterfacePack

pytestmark = pytest.mark.unit

D, E = "d" * 64, "e" * 64
PATHS = GatePaths("g/_passed.flag", "g", "")
FILE = FileDigest("data/one.json", 3, D)
PARTS = (FileDigest("data/many/part-1", 1, D), FileDigest("data/many/part-0", 2, E))


def _output(output_id: str, path: str, **more: Any) -> dict[str, Any]:
    return {"output_id": output_id, "path_template": path, "scope": "scope_global", **more}


def _gate(gate_id: str, *upstream: str) -> dict[str, Any]:
    return {
        "gate_id": gate_id,
        "scope": "fingerprint",
        "passed_flag_path_template": f"{gate_id}/_passed.flag",
        "bundle_root_template": f"{gate_id}/",
        "upstream_gate_dependencies": list(upstream),
        "authorizes_outputs": ["one"],
        "verification_method": {"kind": "sha256_bundle_digest", "digest_field": "sha256_hex", "ordering": "ascii_lex"},
    }


def make_pack() -> InterfacePack:
    document = {
        "outputs": [
            _output("one", "data/one.json"), _output("many", "data/many/part-*"), _output("tree", "data/tree/"),
            _output("extra", "data/extra.json", availability="optional"), _output("stranger", "data/s.json"),
        ],
        "gates": [_gate("a"), _gate("b", "a"), _gate("c", "a", "b"), _gate("stranger")],
    }  # fmt: skip
    return build_pack(document, document)


PACK = make_pack()
GATES, OUTPUTS = ("a", "b", "c"), ("one", "many", "extra")


def evidence(claimed: str = D, found: str = D) -> tuple[GatePaths, Members, Measurement]:
    return PATHS, Members(claimed, ("g/x",), (), (), frozenset()), Measurement(found, {}, 1, 10)


class Steps:
    """A set under construction, in a module of choice."""

    def __init__(self, module: Any, gates: tuple[str, ...] = GATES, outputs: tuple[str, ...] = OUTPUTS) -> None:
        self.module = module
        self.set = module.VerifiedSet(PACK, gates, outputs)

    def gate(self, gate_id: str, claimed: str = D, found: str = D) -> "Steps":
        self.set.admit_gate(gate_id, *evidence(claimed, found))
        return self

    def all_gates(self) -> "Steps":
        return self.gate("a").gate("b").gate("c")

    def output(self, output_id: str, files: tuple[FileDigest, ...] = (FILE,)) -> "Steps":
        self.set.admit_output(output_id, "data/x", files)
        return self

    def absent(self, output_id: str) -> "Steps":
        self.set.declare_absent(output_id)
        return self

    def all_outputs(self) -> "Steps":
        return self.output("one").output("many", PARTS).absent("extra")

    def tampered(self, **private: Any) -> "Steps":
        """Set private state as if the first line of defence had failed."""
        for name, value in private.items():
            assert hasattr(self.set, name), f"{name} is gone; the row must be written anew"
            setattr(self.set, name, value)
        return self

    def finish(self) -> Any:
        return self.set.finish()


Row = tuple[type[Exception], Callable[[Any], object]]
OUT_OF_ORDER: dict[str, Row] = {
    # a set that would verify nothing
    "a set without gates": (SequenceError, lambda m: Steps(m, gates=())),
    "a set without outputs": (SequenceError, lambda m: Steps(m, outputs=())),
    # gates
    "a gate before the one it depends on": (SequenceError, lambda m: Steps(m).gate("b")),
    "a gate before one of two it depends on": (SequenceError, lambda m: Steps(m).gate("a").gate("c")),
    "a gate after one that failed": (SequenceError, lambda m: after_failure(m).gate("b")),
    "a gate that is not required": (SequenceError, lambda m: Steps(m).gate("stranger")),
    "a gate twice": (SequenceError, lambda m: Steps(m).gate("a").gate("a")),
    "a gate twice, the second time with other evidence": (SequenceError, lambda m: Steps(m).gate("a").gate("a", E, E)),
    "a gate of a finished set (tampered)": (
        SequenceError,
        lambda m: Steps(m).gate("a").tampered(_finished=True).gate("b"),
    ),
    "a gate whose digest is another": (EvidenceRefused, lambda m: Steps(m).gate("a", claimed=D, found=E)),
    # outputs
    "an output before any gate": (SequenceError, lambda m: Steps(m).output("one")),
    "an output before the last gate": (SequenceError, lambda m: Steps(m).gate("a").gate("b").output("one")),
    "an output after a gate failed": (SequenceError, lambda m: after_failure(m, "c").output("one")),
    "an output that nobody wants": (SequenceError, lambda m: Steps(m).all_gates().output("stranger")),
    "an output twice": (SequenceError, lambda m: Steps(m).all_gates().output("one").output("one")),
    "an output that was declared absent": (
        SequenceError,
        lambda m: Steps(m).all_gates().absent("extra").output("extra"),
    ),
    "an output of a finished set (tampered)": (
        SequenceError,
        lambda m: Steps(m).all_gates().tampered(_finished=True).output("one"),
    ),
    "an output without files": (EvidenceMissing, lambda m: Steps(m).all_gates().output("one", ())),
    "an output of many files without files": (EvidenceMissing, lambda m: Steps(m).all_gates().output("many", ())),
    "a one-file output with two files": (SequenceError, lambda m: Steps(m).all_gates().output("one", PARTS)),
    # absence
    "absence before any gate": (SequenceError, lambda m: Steps(m).absent("extra")),
    "absence before the last gate": (SequenceError, lambda m: Steps(m).gate("a").gate("b").absent("extra")),
    "absence of an output that is required": (EvidenceMissing, lambda m: Steps(m).all_gates().absent("one")),
    "absence of an output that nobody wants": (SequenceError, lambda m: Steps(m).all_gates().absent("stranger")),
    "absence of an output that is there": (
        SequenceError,
        lambda m: Steps(m).all_gates().output("extra").absent("extra"),
    ),
    "absence twice": (SequenceError, lambda m: Steps(m).all_gates().absent("extra").absent("extra")),
    # the end
    "the end before any gate": (SequenceError, lambda m: Steps(m).finish()),
    "the end before any output": (SequenceError, lambda m: Steps(m).all_gates().finish()),
    "the end before the last output": (
        SequenceError,
        lambda m: Steps(m).all_gates().output("one").absent("extra").finish(),
    ),
    "the end before the optional output is accounted for": (
        SequenceError,
        lambda m: Steps(m).all_gates().output("one").output("many", PARTS).finish(),
    ),
    "the end without the gates (tampered)": (
        SequenceError,
        lambda m: Steps(m).all_gates().all_outputs().tampered(_gates={}).finish(),
    ),
    "the end without one of the gates (tampered)": (SequenceError, lambda m: lost_gate(m).finish()),
    "the end twice": (
        SequenceError,
        lambda m: (done := Steps(m).all_gates().all_outputs(), done.finish(), done.finish()),
    ),
    "the end with nothing but absent outputs": (
        EvidenceMissing,
        lambda m: Steps(m, outputs=("extra",)).all_gates().absent("extra").finish(),
    ),
    # by hand
    "a finished set by hand": (SequenceError, lambda m: m.Verified((), (), (), None)),
    "a finished set by hand, sealed with something": (SequenceError, lambda m: m.Verified((), (), (), object())),
}


def after_failure(module: Any, failing: str = "a") -> "Steps":
    """A set whose gates before ``failing`` passed and which then saw that one fail."""
    steps = Steps(module)
    for gate_id in GATES[: GATES.index(failing)]:
        steps.gate(gate_id)
    with pytest.raises(EvidenceRefused):
        steps.gate(failing, D, E)
    return steps


def lost_gate(module: Any) -> "Steps":
    steps = Steps(module).all_gates().all_outputs()
    return steps.tampered(_gates={key: value for key, value in steps.set._gates.items() if key != "b"})


def answered(module: Any, row: Row) -> str:
    """Empty when the row is answered as written, else what happened instead."""
    wanted, act = row
    try:
        act(module)
    except BaseException as error:  # noqa: BLE001 - anything else is the answer too
        return "" if type(error) is wanted else f"{type(error).__name__} instead of {wanted.__name__}"
    return f"nothing instead of {wanted.__name__}"


# --- the one out-of-order test ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", OUT_OF_ORDER)
def test_what_is_out_of_order_or_empty_is_refused(row: str) -> None:
    assert answered(verified_set, OUT_OF_ORDER[row]) == ""


# --- and that it holds every guard ------------------------------------------------------------------------------------


def _is_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise) and not node.orelse


def guards_of(tree: ast.AST) -> list[ast.If]:
    return [node for node in ast.walk(tree) if _is_guard(node)]  # type: ignore[misc]


def _without(guard: ast.If, operand: int | None) -> None:
    if operand is None or not isinstance(guard.test, ast.BoolOp):
        guard.test = ast.Constant(value=False)
        return
    rest = [value for number, value in enumerate(guard.test.values) if number != operand]
    guard.test = rest[0] if len(rest) == 1 else ast.BoolOp(guard.test.op, rest)


class _JudgeNothing(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "verify_digests":
            return ast.copy_location(ast.Dict(keys=[], values=[]), node)
        return node


def mutants() -> Iterator[tuple[str, ast.Module]]:
    """Copies of the module, each with one guard, or one condition of a guard, taken out."""
    source = inspect.getsource(verified_set)
    guards = guards_of(ast.parse(source))
    assert guards
    for number, guard in enumerate(guards):
        text = ast.unparse(guard.test)
        operands: list[int | None] = [None]
        if isinstance(guard.test, ast.BoolOp) and isinstance(guard.test.op, ast.Or):
            operands += range(len(guard.test.values))  # without one of several reasons the guard is weaker
        for operand in operands:
            tree = ast.parse(source)
            chosen = guards_of(tree)[number]
            label = "all of it" if operand is None else ast.unparse(chosen.test.values[operand])  # type: ignore[attr-defined]
            _without(chosen, operand)
            yield f"line {guard.lineno}: {text} -> without {label}", ast.fix_missing_locations(tree)
    tree = _JudgeNothing().visit(ast.parse(source))
    yield "admit_gate -> without verify_digests()", ast.fix_missing_locations(tree)


MUTANTS = list(mutants())


def loaded(tree: ast.Module, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = types.ModuleType("verified_set_mutant")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(tree, "<mutant>", "exec"), module.__dict__)
    return module


def test_the_copies_are_faithful_until_a_guard_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    module = loaded(ast.parse(inspect.getsource(verified_set)), monkeypatch)
    assert {row: answered(module, OUT_OF_ORDER[row]) for row in OUT_OF_ORDER} == dict.fromkeys(OUT_OF_ORDER, "")


def test_the_guards_are_found() -> None:
    """Fewer than these would mean that the search above no longer sees them."""
    assert len(MUTANTS) >= 24


@pytest.mark.parametrize("mutant", range(len(MUTANTS)), ids=[name for name, _ in MUTANTS])
def test_no_guard_can_be_deleted_unseen(mutant: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = loaded(MUTANTS[mutant][1], monkeypatch)
    noticed = [row for row in OUT_OF_ORDER if answered(module, OUT_OF_ORDER[row])]
    assert noticed, f"nothing in OUT_OF_ORDER notices {MUTANTS[mutant][0]}"


# --- what may be done -------------------------------------------------------------------------------------------------


def finished() -> verified_set.Verified:
    result = Steps(verified_set).all_gates().output("many", PARTS).absent("extra").output("one").finish()
    assert isinstance(result, verified_set.Verified)
    return result


def test_a_finished_set_holds_everything_sorted_by_id() -> None:
    done = finished()
    assert [passed.gate.gate_id for passed in done.gates] == ["a", "b", "c"]
    assert [item.spec.output_id for item in done.outputs] == ["many", "one"]
    assert done.absent == ("extra",)
    assert all(passed.digest == D and passed.files == 1 and passed.bytes == 10 for passed in done.gates)


@pytest.mark.parametrize("order", list(itertools.permutations(OUTPUTS)))
def test_the_order_of_outputs_does_not_matter(order: tuple[str, ...]) -> None:
    steps = Steps(verified_set).all_gates()
    for output_id in order:
        steps.absent("extra") if output_id == "extra" else steps.output(
            output_id, PARTS if output_id == "many" else (FILE,)
        )
    assert steps.finish() == finished()


def test_a_failed_gate_may_be_judged_again_and_then_passes() -> None:
    assert after_failure(verified_set).all_gates().all_outputs().finish() == finished()


def test_an_output_that_had_no_files_may_be_admitted_later() -> None:
    steps = Steps(verified_set).all_gates()
    with pytest.raises(EvidenceMissing):
        steps.output("one", ())
    assert steps.all_outputs().finish() == finished()


def test_an_optional_output_that_is_there_is_evidence_like_any_other() -> None:
    done = Steps(verified_set, outputs=("extra",)).all_gates().output("extra").finish()
    assert [item.spec.output_id for item in done.outputs] == ["extra"]
    assert done.absent == ()


def test_which_gates_block_a_gate_is_told_before_it_is_judged() -> None:
    steps = Steps(verified_set)
    assert steps.set.blocked_by("a") == []
    assert steps.set.blocked_by("c") == ["a", "b"]
    steps.gate("a")
    assert steps.set.blocked_by("c") == ["b"]
    assert not steps.set.gates_passed
    steps.gate("b").gate("c")
    assert steps.set.gates_passed


def test_wrong_order_is_our_defect_and_bad_material_is_an_answer() -> None:
    families = {wanted for wanted, _ in OUT_OF_ORDER.values()}
    assert {issubclass(wanted, Refusal) for wanted in families} == {True, False}
    with pytest.raises(EvidenceRefused) as refused:
        Steps(verified_set).gate("a", D, E)
    assert (refused.value.reason, refused.value.expected, refused.value.actual) == (Reason.EVIDENCE_CONFLICT, D, E)


def test_the_module_says_its_order_in_prose() -> None:
    text = inspect.getdoc(verified_set) or ""
    assert all(f"{number}. " in text for number in (1, 2, 3))


# --- the finished set cannot be made otherwise ------------------------------------------------------------------------


def test_a_finished_set_cannot_be_changed() -> None:
    done = finished()
    for name in ("gates", "outputs", "absent"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(done, name, ())


@pytest.mark.parametrize(
    "changes", [{"gates": ()}, {"outputs": ()}, {"absent": ("one",)}, {"outputs": (), "gates": ()}]
)
def test_a_finished_set_cannot_be_copied_with_other_contents(changes: dict[str, Any]) -> None:
    with pytest.raises((SequenceError, TypeError, ValueError)):
        dataclasses.replace(finished(), **changes)


def test_the_seal_of_one_finished_set_does_not_seal_another() -> None:
    done = finished()
    seals = [getattr(done, name) for name in ("seal", "_seal") if hasattr(done, name)]
    for seal in [*seals, True, (), done]:
        with pytest.raises((SequenceError, TypeError)):
            verified_set.Verified((), (), (), seal)


def test_a_plain_copy_of_a_finished_set_is_the_same_set() -> None:
    done = finished()
    assert copy.copy(done) == done


# --- digests of outputs -----------------------------------------------------------------------------------------------

files_strategy = st.lists(
    st.builds(
        FileDigest,
        st.sampled_from(["a", "a-b", "a.b", "a/b", "B", "é", "10", "9", "\U0001f600", "\uffee", "z/1", "z/0"]),
        st.integers(0, 2**40),
        st.sampled_from([D, E, "0" * 64]),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda file: file.path,
)


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(files_strategy, st.randoms(use_true_random=False))
def test_the_digest_of_a_multi_file_output_is_that_of_its_manifest_in_byte_order(
    files: list[FileDigest], random: Any
) -> None:
    ordered = sorted(files, key=lambda file: file.path.encode("utf-8"))
    rows = [{"bytes": file.bytes, "path": file.path, "sha256": file.sha256} for file in ordered]
    manifest = json.dumps(rows, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    random.shuffle(files)
    admitted = Steps(verified_set).all_gates().set.admit_output("many", "data/many/part-*", files)
    assert admitted.manifest == manifest == verified_set.bundle_manifest(files)
    assert admitted.digest == hashlib.sha256(manifest).hexdigest()
    assert admitted.bytes == sum(file.bytes for file in files)


@pytest.mark.parametrize("output_id", ["many", "tree"])
def test_an_output_of_many_files_has_a_manifest_even_when_it_is_one_file(output_id: str) -> None:
    admitted = Steps(verified_set, outputs=("many", "tree")).all_gates().set.admit_output(output_id, "x", [FILE])
    assert (
        admitted.manifest == json.dumps([{"bytes": 3, "path": FILE.path, "sha256": D}], separators=(",", ":")).encode()
    )
    assert admitted.digest == hashlib.sha256(admitted.manifest).hexdigest()


def test_the_digest_of_a_one_file_output_is_that_of_its_bytes_and_it_has_no_manifest() -> None:
    admitted = Steps(verified_set).all_gates().set.admit_output("one", "data/one.json", [FILE])
    assert (admitted.digest, admitted.manifest, admitted.files) == (D, b"", (FILE,))


def test_bytes_moved_between_the_parts_of_an_output_change_its_digest() -> None:
    def digest(*parts: bytes) -> str:
        files = [FileDigest(f"p{n}", len(part), hashlib.sha256(part).hexdigest()) for n, part in enumerate(parts)]
        return str(Steps(verified_set).all_gates().set.admit_output("many", "x", files).digest)

    assert digest(b"xy", b"z") != digest(b"x", b"yz")
    assert digest(b"xy", b"z") != digest(b"z", b"xy")


def test_a_directory_is_shown_with_its_slash() -> None:
    assert verified_set.display_path(PACK.outputs["tree"], "data/tree") == "data/tree/"
    assert verified_set.display_path(PACK.outputs["one"], "data/one.json") == "data/one.json"
    assert verified_set.display_path(PACK.outputs["many"], "data/many/part-*") == "data/many/part-*"
