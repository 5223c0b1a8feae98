"""Full fine-tuning: student and fake score are whole copies of the teacher."""

import copy

from ..export import export_student
from .base import TRAINED, Networks


class ThreeNetworks(Networks):
    """Three networks of one architecture; all weights of student and fake score are trained."""

    def _place(self, teacher):
        device, accelerator = self.accelerator.device, self.accelerator
        self.trained = {role: copy.deepcopy(teacher).requires_grad_(True).to(device) for role in TRAINED}
        if self.config.backbone.gradient_checkpointing:
            for network in self.trained.values():
                network.enable_gradient_checkpointing()
        self.student, self.fake = (accelerator.prepare_model(self.trained[role]) for role in TRAINED)
        # The teacher stays float32 and runs under the same autocast: at equal weights F and R must agree.
        self.teacher = accelerator.prepare_model(teacher.to(device), evaluation_mode=True)

    def export(self, path, *, update):
        export_student(self.setup, self.trained["student"], path, update=update)
