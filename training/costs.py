"""What one update costs, in forwards of the network at the final size."""

from dataclasses import dataclass

GRADIENT = 3.0  # forward and backward, in forwards
CHECKPOINTED = 4.0  # the same with activations computed twice


@dataclass(frozen=True)
class UpdateCost:
    """Forwards at the final size, for one sample of one update."""

    trajectory: float
    student: float
    fake: float
    judges: float  # teacher and fake score, queried for the student's loss

    @property
    def total(self):
        """All parts together."""
        return self.trajectory + self.student + self.fake + self.judges


def update_cost(plan, relative_cost, *, cfg, fake_steps=1, shared=True, accumulation=1, checkpointing=False):
    """The mean cost of an update after the warm-up; ``relative_cost(height, width)`` is 1 at the final size.

    With ``accumulation`` above 1 the phases share trajectories, but not forwards (docs/training.md).
    """
    per_stage = [[relative_cost(stage.height, stage.width)] * len(stage.sigmas) for stage in plan.stages]
    gradient = CHECKPOINTED if checkpointing else GRADIENT
    before, reached, forward = 0.0, [], []
    for costs in per_stage:
        reached.append(sum(before + sum(costs[:i]) for i in range(len(costs))) / len(costs))
        forward.append(costs[0])
        before += sum(costs)
    to_step, at_step = sum(reached) / len(reached), sum(forward) / len(forward)
    own_trajectory = fake_steps - 1 if shared else fake_steps  # fake phases that share none with the student's phase
    own_forward = own_trajectory if accumulation == 1 else fake_steps
    return UpdateCost(
        trajectory=to_step * (own_trajectory + 1),
        student=at_step * (own_forward + gradient),
        fake=gradient * fake_steps,
        judges=(2.0 if cfg != 1.0 else 1.0) + 1.0,
    )


def plain_cost(plan, relative_cost, *, cfg, fake_steps=1, checkpointing=False):
    """The same for the plain loop: the whole cascade every time, and a student forward in each phase."""
    per_stage = [relative_cost(stage.height, stage.width) for stage in plan.stages]
    gradient = CHECKPOINTED if checkpointing else GRADIENT
    at_step = sum(per_stage) / len(per_stage)
    return UpdateCost(
        trajectory=plan.cost(relative_cost) * fake_steps,
        student=at_step * (fake_steps + gradient),
        fake=gradient * fake_steps,
        judges=(2.0 if cfg != 1.0 else 1.0) + 1.0,
    )
