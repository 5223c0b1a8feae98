"""Full fine-tuning: student and fake score are whole copies of the teacher."""

import copy

from accelerate import init_empty_weights

from ..export import export_student
from ..recomputing import Recomputing
from ..sharding import full, shard
from ..waiting import Residence
from .base import TRAINED, Networks


class ThreeNetworks(Networks):
    """Three networks of one architecture; all weights of student and fake score are trained."""

    def _place(self, teacher):
        accelerator = self.accelerator
        self._kind = type(teacher)
        self.trained = {role: self._made(copy.deepcopy(teacher).requires_grad_(True)) for role in TRAINED}
        networks = self.trained | {"teacher": self._on_device(teacher)}
        # The teacher stays float32 and runs under the same autocast: at equal weights F and R must agree. Nothing is
        # wrapped: Processes averages the gradients, once in an update.
        calls = {
            name: accelerator.prepare_model(network, evaluation_mode=True, device_placement=not self.waits)
            for name, network in networks.items()
        }
        if self.waits:
            self._residence = Residence(networks, self.processes.device, frozen=("teacher",))
            calls = {name: self._residence.seen(name, networks[name], call) for name, call in calls.items()}
        self.student, self.fake, self.teacher = (calls[name] for name in ("student", "fake", "teacher"))

    def _made(self, network):
        setting = self.config.backbone.gradient_checkpointing
        if setting:
            network.enable_gradient_checkpointing(Recomputing(setting))
        return self._on_device(network)

    def _on_device(self, network):
        if self.processes.sharded:
            return shard(network, self.processes)
        return network if self.waits else network.to(self.processes.device)

    def _rest(self):
        if self.waits:
            self._residence.clear()

    def _stepped(self, role):
        if self.waits:
            self._residence.stepped(role)

    def _whole(self, network):
        """A network that is spread, whole on the CPU of process 0; to be asked for by all processes together."""
        weights = {}
        for name, tensor in network.state_dict().items():
            tensor = full(tensor)
            if self.processes.main:
                weights[name] = tensor.cpu()
        if not self.processes.main:
            return None
        with init_empty_weights(include_buffers=False):
            plain = self._kind.from_config(network.config)
        plain.load_state_dict(weights, strict=True, assign=True)
        return plain

    def export(self, path, *, update):
        student = self.trained["student"]
        if self.processes.sharded:
            student = self._whole(student)
        if self.processes.main:
            export_student(self.setup, student, path, update=update)
