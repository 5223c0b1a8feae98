"""One frozen base: it is the teacher, and with either of two LoRA adapters on it the student or the fake score."""

import torch

from ..export import export_lora, export_student
from ..sharding import shard
from .adapted import AdaptedNetwork
from .base import TRAINED, Networks


class AdapterNetworks(Networks):
    """The memory of one model and two adapters; only the adapters are trained."""

    def _place(self, teacher):
        device, spread = self.processes.device, self.processes.sharded
        base = adapt(teacher if spread else teacher.to(device), self.setup.backbone, self.config.model)
        self.base = base.start(self.config.train.seed)
        if self.config.backbone.gradient_checkpointing:
            self.base.enable_gradient_checkpointing()
        self.trained = self.base.adapters
        if spread:  # the base alone; adapters are small, and whole in every process
            own = [parameter for adapter in self.trained.values() for parameter in adapter.parameters()]
            for parameter in own:
                parameter.data = parameter.data.to(device)
            shard(self.base.network, self.processes, whole=own)
        call = self.accelerator.prepare_model(self.base.network, evaluation_mode=True)  # autocast; nothing is wrapped
        self.student, self.fake = (self.base.seen_with(role, call) for role in TRAINED)
        self.teacher = self.base.seen_with(None, call)

    def export(self, path, *, update):
        if self.config.output.merge:
            merged = self.base.merged("student", dtype=getattr(torch, self.config.output.dtype))
            if self.processes.main:
                export_student(self.setup, merged, path, update=update)
        elif self.processes.main:
            export_lora(self.setup, self.base.network, self.base.factors("student"), path, update=update)


def adapt(network, backbone, settings):
    """An AdaptedNetwork with the adapters of student and fake score, by the configuration's model section."""
    targets = settings.targets or backbone.adapter_targets
    return AdaptedNetwork(network, TRAINED, rank=settings.rank, alpha=settings.alpha, targets=targets)
