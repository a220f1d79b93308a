"""What is counted of records of the control bus, after the commit of their dispositions; each record once."""

from collections.abc import Sequence

from scenario_runner.authority.values import Admission, Admitted
from scenario_runner.contracts.states import REFUSED, Disposition
from scenario_runner.counters import OTHER, count, observing


@observing
def count_admitted(admissions: Sequence[Admission], admitted: Sequence[Admitted]) -> None:
    """Count records that were disposed of.

    Args:
        admissions: The records, as they were given to the authority.
        admitted: Their dispositions, in the same order.
    """
    for admission, answer in zip(admissions, admitted, strict=True):
        if answer.repeated:
            continue
        count("sr_run_requests_total", admission.kind or OTHER)
        if answer.disposition in REFUSED:
            count("sr_runs_rejected_total", answer.reason_code)
        elif answer.disposition is Disposition.ACCEPTED and admission.run is not None:
            count("sr_runs_accepted_total")
