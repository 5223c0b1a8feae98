"""RMD Schedule on tiny models: the choices of its plan sources, its outputs, its plan alone, and its refusals."""

from dataclasses import dataclass

import pytest

METHOD = {"earlier_sizes": "0.5", "mapping": "auto", "base_shift": 0.0, "method": "default"}


def by_steps(split="2+2", scale=0.5):
    return {"source": "steps per size", "split": split, "scale": scale}


def by_thresholds(steps=4, thresholds="-2.5", **others):
    return {"source": "thresholds", "steps": steps, "thresholds": thresholds, **METHOD, **others}


def by_split(split="2+2", sigmas="", **others):
    return {"source": "split", "split": split, "sigmas": sigmas, **METHOD, **others}


def by_sigmas(sigmas, split="auto", thresholds="", earlier_sizes="0.5", mapping="auto"):
    given = {"scheduler_sigmas": sigmas, "split": split, "thresholds": thresholds}
    return {"source": "scheduler sigmas", **given, "earlier_sizes": earlier_sizes, "mapping": mapping}


def by_profile(profile, split="auto", earlier_sizes="0.5"):
    return {"source": "few-step profile", "profile": profile.title, "split": split, "earlier_sizes": earlier_sizes}


def pixel_sizes(plan):
    """(width, height) of every stage that runs, in pixels."""
    return [(stage.width * plan.cell_px, stage.height * plan.cell_px) for stage in plan.stage_plan.stages]


@dataclass(frozen=True)
class Schedules:
    """The fixtures `pack` and `tiny`; models are named as in comfy_models, sizes are (width, height) in pixels."""

    pack: object
    tiny: object

    def run(self, name, size, source, **others):
        """The node's NodeOutput."""
        node = self.pack.nodes.plan_nodes.RMDSchedule
        return node.execute(model=self.tiny(name).patcher, width=size[0], height=size[1], source=source, **others)

    def plan(self, name, size, source, *, denoise=1.0):
        """The node's plan without its image."""
        nodes = self.pack.nodes
        view = nodes.bridge.model.ModelView.of(self.tiny(name).patcher)
        final_hw = nodes.bridge.plans.final_cells(view, width=size[0], height=size[1])
        return nodes.bridge.plans.last_steps(nodes.bridge.plans.sampling_plan(view, final_hw, source), denoise)

    def refused(self, *arguments, **others):
        """The one line with which the node refuses."""
        with pytest.raises(self.pack.rmd_core.errors.RMDError) as caught:
            self.run(*arguments, **others)
        text = str(caught.value)
        assert "\n" not in text and text
        return text
