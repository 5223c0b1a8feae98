"""The ways to sample that are timed: a stage plan, guided or not."""

from dataclasses import dataclass, replace

from rmd_core.plan import StagePlan, plan_from_split
from rmd_core.schedule import NoMap


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to sample: its plan, and whether each call also asks for the null prompt."""

    name: str
    plan: StagePlan
    guided: bool = False

    @property
    def steps(self):
        return len(self.plan.steps)

    @property
    def calls(self):
        """Network calls for one sample."""
        return self.steps * (2 if self.guided else 1)

    def flops(self, by_size):
        """Floating-point operations of all calls for one sample, from those of one call by ``size_name``."""
        once = sum(by_size[size_name((step.height, step.width))] for step in self.plan.steps)
        return once * (2 if self.guided else 1)

    def warm_up(self):
        """The same with one step at each size."""
        return self._with_split((1,) * len(self.plan.stages))

    def shortened(self, steps):
        """The same with fewer steps, for a plan of one size."""
        return self._with_split((steps,))

    def _with_split(self, split):
        sizes = [(stage.height, stage.width) for stage in self.plan.stages]
        plan = plan_from_split(self.plan.curve, split, sizes=sizes, mapping=self.plan.mapping)
        return replace(self, plan=plan)


def single_size(name, curve, steps, size, *, guided=False):
    """All steps at one size."""
    plan = plan_from_split(curve, (steps,), sizes=[size], mapping=NoMap())
    return Way(name=name, plan=plan, guided=guided)


def cascade(name, curve, split, sizes, mapping):
    """A split over growing sizes, without guidance."""
    return Way(name=name, plan=plan_from_split(curve, split, sizes=sizes, mapping=mapping))


def size_name(size):
    """Latent height and width as text, such as ``60x104``."""
    return f"{size[0]}x{size[1]}"
