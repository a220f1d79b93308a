"""The list of checks that a verification made, and whether it passed."""

from dataclasses import dataclass, field

from scenario_runner.contracts.canonical import Json


@dataclass
class Findings:
    """Checks in the order in which they were made.

    Attributes:
        checks: ``{check, ok}`` each, with ``detail`` where it failed, ``not_possible`` where it could not be made, and
            further facts such as ``expected`` and ``actual``.
        pack: ``{origin, digest}`` of the interface pack that was verified under; empty when no pack could be chosen.
        policy: ``{origin, policy_id, revision, content_digest}``; empty when the facts view is not well formed.
        depth: ``{verification_depth, depths}`` as the record has them; empty of a run whose outputs were all read.
    """

    checks: list[Json] = field(default_factory=list)
    pack: Json = field(default_factory=dict)
    policy: Json = field(default_factory=dict)
    depth: Json = field(default_factory=dict)

    def expect(self, check: str, *, ok: bool, detail: str = "", **facts: object) -> bool:
        """Record one check.

        Args:
            check: What should be true, as a short sentence.
            ok: Whether it is true.
            detail: Why it is not; recorded only when it is not.
            facts: Further fields of the entry.

        Returns:
            ``ok``.
        """
        entry: Json = {"check": check, "ok": ok, **facts}
        if detail and not ok:
            entry["detail"] = detail
        self.checks.append(entry)
        return ok

    def expect_equal(self, check: str, *, expected: object, actual: object, origin: str | None = None) -> bool:
        """Record that two values are equal, with both and with who vouches for the first; returns whether they are."""
        facts = {} if origin is None else {"origin": origin}
        return self.expect(check, ok=expected == actual, detail="", expected=expected, actual=actual, **facts)

    def not_possible(self, check: str, why: str) -> None:
        """Record that a check could not be made. That is neither a failure of the run nor a proof."""
        self.checks.append({"check": check, "ok": True, "not_possible": True, "detail": f"not possible: {why}"})

    @property
    def ok(self) -> bool:
        """True when at least one check was made and every check that was made held."""
        made = [check for check in self.checks if not check.get("not_possible")]
        return bool(made) and all(check["ok"] for check in made)
