"""One frozen base: it is the teacher, and with either of two LoRA adapters on it the student or the fake score."""

import torch

from ..export import export_lora, export_student
from ..hub import located
from ..quantised import is_quantised, quantise
from ..sharding import shard
from .adapted import AdaptedNetwork
from .base import TRAINED, Networks


class AdapterNetworks(Networks):
    """The memory of one model and two adapters; only the adapters are trained."""

    def _place(self, teacher):
        device, spread = self.processes.device, self.processes.sharded
        backbone, settings, recomputed = self.setup.backbone, self.config.model, self.config.backbone
        if is_quantised(settings.base_dtype):
            quantise(teacher, settings.base_dtype, targets=adapted_layers(settings, backbone), device=device)
        self.base = adapt(teacher if spread else teacher.to(device), backbone, settings).start(self.config.train.seed)
        if recomputed.gradient_checkpointing:
            self.base.enable_gradient_checkpointing(recomputed.gradient_checkpointing)
        if self.config.train.precision == "bfloat16":
            self.base.leave_casts_to_autocast()
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
            if is_quantised(self.config.model.base_dtype) and not self.processes.main:
                return  # such a base is never spread, so no process waits for this one
            plain = self._plain() if self.processes.main else None
            merged = self.base.merged("student", dtype=getattr(torch, self.config.output.dtype), base=plain)
            if self.processes.main:
                export_student(self.setup, merged, path, update=update)
        elif self.processes.main:
            export_lora(self.setup, self.base.network, self.base.factors("student"), path, update=update)

    def _plain(self):
        """The base as it was before it was quantised, read again; None where it was not."""
        if not is_quantised(self.config.model.base_dtype):
            return None
        return self.setup.backbone.load(located(self.config.backbone.base), dtype=torch.float32)


def adapt(network, backbone, settings):
    """An AdaptedNetwork with the adapters of student and fake score, by the configuration's model section."""
    targets = adapted_layers(settings, backbone)
    return AdaptedNetwork(network, TRAINED, rank=settings.rank, alpha=settings.alpha, targets=targets)


def adapted_layers(settings, backbone):
    """The endings of the names of the layers that get an adapter, by the configuration's model section."""
    return settings.targets or backbone.adapter_targets
