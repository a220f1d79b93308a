"""Every kind of damage: what it is called, what it does, and where it can go."""

import re
from collections.abc import Mapping
from typing import Final

from sr_tools.engine.damage_gates import GATE_DAMAGES, SealedGate
from sr_tools.engine.damage_outputs import OUTPUT_DAMAGES, WrittenOutput
from sr_tools.engine.errors import MakeRunError
from sr_tools.engine.laws import law_digest
from sr_tools.engine.pack import BUNDLE_LAW, CONCAT_LAW, INDEX_LAW
from sr_tools.engine.plan import Plan

DAMAGE_TABLE: Final = """\
flag_missing                  The passed flag is absent.
flag_empty                    The passed flag has no bytes.
flag_binary                   The passed flag is 256 bytes that are not text.
flag_huge                     The right passed flag, followed by blanks up to 8 MiB.
flag_wrong_field              The right digest stands under another field name.
flag_upper_case               The right digest is written in upper case.
flag_bit_off                  The digest in the flag is one bit off.
flag_symlink                  The flag is a symlink to the right flag, elsewhere under the run root.
flag_directory                A directory stands in place of the passed flag.
flag_fifo                     A FIFO without a writer stands in place of the passed flag.
flag_says_fail                A JSON flag with the right digest also carries "status": "FAIL".
index_missing                 The index document is absent.
index_empty_items             The index lists nothing; the flag agrees: the digest of nothing.
index_not_json                The index is cut off in the middle of its JSON.
index_duplicate_key           An entry has the key path twice; the last one is right.
index_item_without_path       One more entry has a digest but no path.
index_absolute_path           A member is listed by its absolute path; the flag agrees.
index_parent_path             A member is listed by a path with `..` to the right file; the flag agrees.
index_dot_path                A member is listed by a path that starts with `./`; the flag agrees.
index_duplicate_path          A member is listed twice; the flag is over both mentions.
index_missing_member          The index lists one more member, which is absent.
index_huge                    The index is a sparse file of 50 GB that starts as the right one.
index_million_entries         The index lists a million members more, which are absent.
index_deep_nesting            An entry holds arrays nested 100,000 deep.
index_wrong_listed_digest     One digest that the index lists is wrong; the flag agrees.
member_tampered               A member's bytes changed, its size did not; nothing else follows.
member_tampered_flag_follows  A member's bytes changed, the flag follows, the listed digest is stale.
member_missing                A member is absent.
member_symlink                A member is a symlink to the right bytes, elsewhere under the run root.
member_is_directory           A directory holding the right file stands in place of a member (index law).
member_extra_nested_flag      A payload named like the flag was added in a subdirectory (bundle law).
bundle_empty                  Only the flag is left, and it is the digest of nothing (bundle law).
concat_shift                  Bytes moved from the start of a member to the end of the one before it:
                              the flag agrees, two listed digests do not (bundle law).
output_missing                The output is absent, with the directories that it alone was in.
output_empty_directory        The output's directory is there, with nothing of the output in it.
output_part_is_directory      One part is an empty directory with the name of a part file.
output_part_symlink           One part is a symlink to the right bytes, elsewhere under the run root.
output_part_fifo              One part is a FIFO without a writer.
output_root_symlink           The directory of the output's files is a symlink out of the run root.
root_missing                  The whole run directory is absent.
"""
ROOT_MISSING: Final = "root_missing"
"""The one kind without a target: there is no run left that could hold one."""
DAMAGE_KINDS: Final = tuple(re.findall(r"^[a-z_]+", DAMAGE_TABLE, re.MULTILINE))

# Kinds that apply to some laws only, the default first; all others apply to any gate.
TARGET_LAWS: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys((kind for kind in GATE_DAMAGES if kind.startswith("index_")), (INDEX_LAW, CONCAT_LAW, BUNDLE_LAW)),
    "member_tampered_flag_follows": (BUNDLE_LAW, INDEX_LAW),
    "member_is_directory": (INDEX_LAW,),
    **dict.fromkeys(("member_extra_nested_flag", "bundle_empty", "concat_shift"), (BUNDLE_LAW,)),
}
# Kinds that apply to some forms of output only, the default first; all others apply to any output.
TARGET_FORMS: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(("output_empty_directory", "output_part_is_directory"), ("glob", "directory")),
}


def choose_target(kind: str | None, target: str | None, plan: Plan, *, skip_optional: bool) -> str | None:
    """The id of the gate or output that a damage goes to; None when it needs none.

    Args:
        kind: One of :data:`DAMAGE_KINDS`, or None for a run without damage.
        target: The id asked for; None for the first that the kind applies to.
        plan: What the run holds.
        skip_optional: Whether optional outputs stay unwritten and cannot be a target.

    Raises:
        MakeRunError: The kind is unknown, or the target is not one that it applies to.
    """
    if kind is None or kind == ROOT_MISSING:
        if target is not None:
            raise MakeRunError("--damage-target goes with a --damage that has a target")
        return None
    if kind not in DAMAGE_KINDS:
        raise MakeRunError(f"no damage {kind!r}; the kinds are {' '.join(DAMAGE_KINDS)}")
    able = _able_gates(kind, plan) if kind in GATE_DAMAGES else _able_outputs(kind, plan)
    if skip_optional:
        able = [name for name in able if name not in {o.output_id for o in plan.outputs if o.optional}]
    if target not in able and (target or not able):
        raise MakeRunError(f"{kind} cannot go to {target or 'this run'}, only to: {' '.join(able) or 'none'}")
    return target or able[0]


def _able_gates(kind: str, plan: Plan) -> list[str]:
    """The gates that a damage applies to, the default first (best law, then map order)."""
    laws = TARGET_LAWS.get(kind)
    able = [gate for gate in plan.gates if not laws or gate.law in laws]
    return [gate.gate_id for gate in sorted(able, key=lambda gate: laws.index(gate.law) if laws else 0)]


def _able_outputs(kind: str, plan: Plan) -> list[str]:
    """The outputs that a damage applies to, the default first (required ones, then by form)."""
    forms = TARGET_FORMS.get(kind, ("glob", "directory", "file"))
    able = [output for output in plan.outputs if output.form in forms and plan.bundle_of(output) is None]
    return [o.output_id for o in sorted(able, key=lambda o: (o.optional, forms.index(o.form)))]


def do_damage(kind: str, plan: Plan, target: str, output: WrittenOutput) -> None:
    """Make one thing wrong in a sealed run.

    Args:
        kind: One of :data:`DAMAGE_KINDS` that has a target.
        plan: What the run holds.
        target: Id of the gate, for kinds that go to gates.
        output: The target, for kinds that go to outputs.
    """
    if kind in OUTPUT_DAMAGES:
        OUTPUT_DAMAGES[kind](output)
        return
    gate = next(gate for gate in plan.gates if gate.gate_id == target)
    GATE_DAMAGES[kind](SealedGate(output.root, gate, law_digest(output.root, gate)))
