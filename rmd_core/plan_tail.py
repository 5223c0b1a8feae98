"""The last steps of a plan: what remains of it when a picture is already there to start from."""

from __future__ import annotations

from .errors import RMDError
from .plan import StagePlan, plan_from_split


def plan_tail(plan: StagePlan, steps: int) -> StagePlan:
    """The plan of the last `steps` steps alone, at the same sizes and levels; the plan itself if that is all of them.

    A size that loses its steps keeps its place with a 0 ("0+2"), so that levels stay mapped from the plan's first size.
    Raises RMDError unless steps is from 1 to the number of steps of the plan.
    """
    total = len(plan.base_sigmas)
    if not 1 <= steps <= total:
        raise RMDError(f"the last {steps} of {total} steps are no plan; keep 1 to {total}")
    if steps == total:
        return plan
    counts, dropped = [], total - steps
    for count in plan.steps_asked:
        gone = min(count, dropped)
        dropped -= gone
        counts.append(count - gone)
    return plan_from_split(
        plan.curve, counts, sizes=plan.sizes, mapping=plan.mapping, steps=plan.base_sigmas[total - steps :]
    )
