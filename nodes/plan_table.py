"""A plan as text: what runs at which size and level, what it costs, by which rules, and what the user should know."""

from __future__ import annotations

from collections.abc import Callable

from ..rmd_core.logsnr import FlowCurve
from ..rmd_core.mapping import NoMap
from .bridge.sampling_plan import SamplingPlan
from .stage_pixels import pixels

CallCost = Callable[[int, int], float]
"""The cost of a network call at (height, width) cells, in any unit."""


def plan_table(plan: SamplingPlan, call_cost: CallCost) -> str:
    """Several lines: origin, model, curve, mapping, one line for each step, cost, rules, notes; sizes in pixels."""
    stages = plan.stages
    facts = [
        ("from", plan.origin),
        ("model", str(plan.kind)),
        ("sizes", sizes_line(plan)),
        ("curve", stages.curve.describe()),
        ("mapping", mapping_line(plan)),
    ]
    rules = [
        ("cost", cost_line(plan, call_cost)),
        ("boundary", boundary_line(plan)),
        ("eta", f"{plan.eta:g} (share of predicted noise between the steps of a stage)"),
        ("cfg", f"{plan.cfg:g}"),
    ]
    if plan.size_conditioning != "none":
        rules.append(("size told", f"that of the {plan.size_conditioning}"))
    lines = [f"{name:<9} {text}" for name, text in facts]
    lines += ["", *_step_lines(plan, call_cost), ""]
    lines += [f"{name:<9} {text}" for name, text in rules]
    notes = [*plan.notes, *(note.text(lambda size: f"{pixels(plan.cell_px, size)} px") for note in stages.notes)]
    return "\n".join([*lines, *(["", "notes", *(f"- {note}" for note in notes)] if notes else [])])


def sizes_line(plan: SamplingPlan) -> str:
    """Sizes and steps of the stages, such as `832x480 -> 1280x720 px, 3+3 steps`."""
    shown = " -> ".join(pixels(plan.cell_px, stage.size) for stage in plan.stages.stages)
    calls = "+".join(map(str, plan.stages.calls_per_stage))
    return f"{shown} px, {calls} {'step' if calls == '1' else 'steps'}"


def step_costs(plan: SamplingPlan, call_cost: CallCost) -> tuple[float, ...]:
    """The cost of each step in calls at the final size."""
    full = call_cost(*plan.stages.final_hw)
    return tuple(call_cost(*step.size) / full for step in plan.stages.steps)


def cost_line(plan: SamplingPlan, call_cost: CallCost) -> str:
    """The total in calls at the final size, beside as many calls that are all made there."""
    costs = step_costs(plan, call_cost)
    total, calls, final = sum(costs), len(costs), pixels(plan.cell_px, plan.stages.final_hw)
    saving = f"; {calls} at {final} px would be {calls / total:.2f} times as much" if calls - total > 0.005 else ""
    return f"{total:.2f} full-size calls for {calls} {'step' if calls == 1 else 'steps'}{saving}"


def mapping_line(plan: SamplingPlan) -> str:
    """The mapping and the ratio r, for a flow also the shift, at each larger size."""
    mapping, curve = plan.stages.mapping, plan.stages.curve
    name = mapping.describe()
    if isinstance(mapping, NoMap):
        return name
    parts = []
    for stage in plan.stages.stages:
        if stage.ratio != 1.0:
            shift = f" (shift {curve.shift * stage.ratio:.4g})" if isinstance(curve, FlowCurve) else ""
            parts.append(f"r = {stage.ratio:.4g} at {pixels(plan.cell_px, stage.size)}{shift}")
    return f"{name}: {', '.join(parts)}" if parts else f"{name}: one size, r = 1"


def boundary_line(plan: SamplingPlan) -> str:
    """The rule at a change of size in a few words."""
    rule = plan.boundary
    share = f", eta {rule.eta_switch:g}" if rule.switch_noise != "fresh" else ""
    return f"x0 upsampled {rule.upsampler}, {rule.switch_noise} noise{share}"


def _step_lines(plan: SamplingPlan, call_cost: CallCost) -> list[str]:
    lines = ["step stage     size px      sigma  timestep   logSNR   cost"]
    for step, cost in zip(plan.stages.steps, step_costs(plan, call_cost)):
        size = pixels(plan.cell_px, step.size)
        sigma = plan.stages.curve.comfy_sigma(step.sigma)
        lines.append(
            f"{step.index + 1:4d} {step.stage + 1:5d} {size:>11}  {sigma:9.5f}  {step.timestep:8.2f}  "
            f"{step.logsnr:7.3f}  {cost:5.3f}"
        )
    return lines
