"""The closed list of reason codes and the families of errors."""

import importlib
import pkgutil
import re
from collections.abc import Iterator

import pytest

import scenario_runner
from scenario_runner.contracts import errors
from scenario_runner.contracts.errors import (
    ConfigurationError,
    EvidenceChanged,
    EvidenceMissing,
    EvidenceRefused,
    EvidenceSaysNo,
    LeaseLostError,
    LedgerDrift,
    Refusal,
    RequestRefused,
    ScenarioRunnerError,
    SequenceError,
    Unavailable,
    UsageError,
)
from scenario_runner.contracts.reasons import SENTENCES, Reason
from scenario_runner.contracts.states import (
    FINAL_STATES,
    OWN_SIGNALS,
    TRANSITIONS,
    Disposition,
    RunState,
    SignalKind,
    Strategy,
)

pytestmark = pytest.mark.unit

IN_USE = [
    "UNKNOWN_OUTPUT_ID",
    "UNKNOWN_GATE_ID",
    "EVIDENCE_MISSING_DEADLINE",
    "EVIDENCE_CONFLICT",
    "GATE_FAIL",
    "INSTANCE_RECEIPT_DRIFT",
    "EQUIV_KEY_COLLISION",
    "ENGINE_ROOT_MISSING",
    "ENGINE_COMMAND_MISSING",
    "ENGINE_EXIT_NONZERO",
    "ENGINE_TIMEOUT",
    "ENGINE_RECEIPT_MISSING",
    "ENGINE_RECEIPT_INVALID",
    "ENGINE_RECEIPT_MISMATCH",
    "ENGINE_INVOCATION_INVALID",
    "ATTEMPT_LIMIT_EXCEEDED",
    "LOCATOR_SCHEMA_INVALID",
    "RECEIPT_SCHEMA_INVALID",
    "AUTH_DENIED",
    "REEMIT_READY_ONLY_MISMATCH",
    "REEMIT_TERMINAL_ONLY_MISMATCH",
    "REEMIT_RATE_LIMIT",
    "FACTS_VIEW_MISSING",
    "FACTS_VIEW_DRIFT",
    "PLAN_DRIFT",
]  # contracts.md section 5, word for word


def every_module() -> list[str]:
    return [info.name for info in pkgutil.walk_packages(scenario_runner.__path__, "scenario_runner.")]


def subclasses(family: type[ScenarioRunnerError]) -> Iterator[type[ScenarioRunnerError]]:
    for child in family.__subclasses__():
        yield child
        yield from subclasses(child)


def all_errors() -> list[type[ScenarioRunnerError]]:
    for name in every_module():
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as missing:
            if (missing.name or "scenario_runner").startswith("scenario_runner"):
                raise  # else: the driver of a backend that is not installed here
    return sorted(set(subclasses(ScenarioRunnerError)), key=lambda item: item.__qualname__)


def test_the_contract_lists_twenty_five_codes_and_all_of_them_exist() -> None:
    assert len(set(IN_USE)) == 25
    assert set(IN_USE) <= {reason.value for reason in Reason}


def test_every_code_is_its_own_name() -> None:
    assert {reason.name: reason.value for reason in Reason} == {reason.value: reason.value for reason in Reason}
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]{1,63}", reason.value) for reason in Reason)


def test_every_code_has_exactly_one_sentence_and_no_sentence_lacks_its_code() -> None:
    assert set(SENTENCES) == set(Reason)
    assert len(set(SENTENCES.values())) == len(SENTENCES), "two codes share a sentence"


@pytest.mark.parametrize("reason", Reason)
def test_the_sentence_of_a_code_is_one_sentence(reason: Reason) -> None:
    sentence = SENTENCES[reason]
    assert sentence == sentence.strip()
    assert sentence.isprintable()
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    assert re.search(r"[.!?]\s+[A-Z]", sentence) is None
    assert 20 <= len(sentence) <= 120


def test_every_error_of_the_package_has_a_default_code_from_the_list() -> None:
    found = all_errors()
    assert {SequenceError, Unavailable, ConfigurationError, UsageError, Refusal} <= set(found)
    assert [item.__qualname__ for item in found if item.default_reason not in set(Reason)] == []


def test_errors_that_are_somebody_elses_fault_do_not_default_to_an_internal_error() -> None:
    ours = {item for item in all_errors() if item.default_reason is Reason.INTERNAL_ERROR}
    assert {item for item in ours if not issubclass(item, SequenceError | LeaseLostError)} == set()


def test_the_families_do_not_overlap() -> None:
    families = (
        SequenceError, Refusal, LedgerDrift, EvidenceChanged, Unavailable, ConfigurationError, UsageError,
        LeaseLostError,
    )  # fmt: skip
    for error in all_errors():
        assert sum(issubclass(error, family) for family in families) <= 1, error


@pytest.mark.parametrize(
    "error",
    [
        SequenceError, LeaseLostError, Unavailable, ConfigurationError, UsageError,
        EvidenceChanged,  # a file that is just being written must not become a verdict in a handler of refusals
        LedgerDrift,  # our own objects are not material from outside
    ],
)  # fmt: skip
def test_only_bad_material_from_outside_is_a_refusal(error: type[ScenarioRunnerError]) -> None:
    assert not issubclass(error, Refusal)


@pytest.mark.parametrize("error", [RequestRefused, EvidenceRefused, EvidenceSaysNo, EvidenceMissing])
def test_every_answer_to_bad_material_is_a_refusal(error: type[ScenarioRunnerError]) -> None:
    assert issubclass(error, Refusal)


def test_every_error_in_the_errors_module_has_the_one_root() -> None:
    found = [item for item in vars(errors).values() if isinstance(item, type) and item.__module__ == errors.__name__]
    assert len(found) > 10
    assert all(issubclass(item, ScenarioRunnerError) for item in found)


def test_an_error_says_its_code_and_its_detail() -> None:
    error = Refusal("the flag is empty", Reason.GATE_FAIL)
    assert str(error) == "GATE_FAIL: the flag is empty"
    assert error.sentence() == SENTENCES[Reason.GATE_FAIL]
    assert Refusal("x").reason is Reason.EVIDENCE_MALFORMED


def test_a_configuration_error_says_place_problem_and_remedy() -> None:
    error = ConfigurationError("profile.yaml, line 3", "the key is unknown", "remove it", Reason.STORE_UNSAFE)
    assert (error.place, error.problem, error.remedy) == ("profile.yaml, line 3", "the key is unknown", "remove it")
    for part in ("profile.yaml, line 3", "the key is unknown", "remove it", "STORE_UNSAFE"):
        assert part in str(error)


def test_what_a_library_says_on_many_lines_is_one_line_of_ours() -> None:
    assert (
        errors.in_short("failed: refused\n\tIs it running?\r\n- host 'a'\n")
        == "failed: refused Is it running? - host 'a'"
    )
    assert len(errors.in_short("x" * 1000)) < 310
    error = ConfigurationError("a\nb", "c\nd", "e\nf")
    assert (error.place, error.problem, error.remedy) == ("a\\nb", "c\\nd", "e\\nf")


def test_evidence_errors_carry_where_what_was_claimed_and_what_was_found() -> None:
    refused = EvidenceRefused("x", Reason.EVIDENCE_CONFLICT, path="a/b", expected="1", actual="2")
    assert (refused.path, refused.expected, refused.actual) == ("a/b", "1", "2")
    assert EvidenceMissing("x", path="a").path == "a"
    assert EvidenceChanged("x", path="a").path == "a"


# --- the other closed lists -------------------------------------------------------------------------------------------


def test_the_states_and_their_transitions_are_those_of_the_architecture() -> None:
    words = ["OPEN", "PLANNED", "EXECUTING", "VERIFYING", "WAITING_EVIDENCE", "READY", "FAILED", "QUARANTINED"]
    assert [state.value for state in RunState] == words
    assert set(TRANSITIONS) == set(RunState)
    assert {state for state in RunState if not TRANSITIONS[state]} == set(FINAL_STATES)
    assert {state.value for state in FINAL_STATES} == {"READY", "FAILED", "QUARANTINED"}
    assert {state for state in RunState if RunState.READY in TRANSITIONS[state]} == {RunState.VERIFYING}


def test_every_state_is_reached_from_open() -> None:
    reached, waiting = {RunState.OPEN}, [RunState.OPEN]
    while waiting:
        new = TRANSITIONS[waiting.pop()] - reached
        reached |= new
        waiting += new
    assert reached == set(RunState)


def test_signal_kinds_strategies_and_dispositions_are_those_of_the_contract() -> None:
    assert {kind.value for kind in SignalKind} == {
        "RUN_REQUEST", "REEMIT_REQUEST", "READY", "TERMINAL", "READY_REEMIT", "TERMINAL_REEMIT", "REQUEST_REJECTED",
        "RUN_SUPERSEDES", "EVIDENCE_ARRIVED",
    }  # fmt: skip
    assert set(SignalKind) - OWN_SIGNALS == {
        SignalKind.RUN_REQUEST, SignalKind.REEMIT_REQUEST, SignalKind.EVIDENCE_ARRIVED,
    }  # fmt: skip
    assert {item.value for item in Strategy} == {"AUTO", "FORCE_INVOKE", "FORCE_REUSE"}
    assert {item.value for item in Disposition} == {"ACCEPTED", "DUPLICATE", "CONFLICT", "REJECTED", "IGNORED"}
