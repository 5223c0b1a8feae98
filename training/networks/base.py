"""What loop, validation and checkpoints ask of the three networks, whatever they are made of."""

import contextlib
from abc import ABC, abstractmethod

from rmd_core.errors import RMDError

from ..ema import WeightAverage
from ..optim import load_optimiser_tensors, make_optimiser, optimiser_tensors
from ..sharding import fits, put
from ..waiting import ParkedOptimiser

TRAINED = ("student", "fake")


class Networks(ABC):
    """Student, fake score and teacher with their optimisers and, where asked for, the student's weight average.

    ``student``, ``fake``, ``teacher``: what a backbone predicts with. ``trained``: for the student and the fake score,
    an object with the ``parameters``, ``named_parameters``, ``state_dict`` and ``load_state_dict`` of what is trained.
    """

    student: object
    fake: object
    teacher: object
    trained: dict

    def __init__(self, setup, processes):
        self.setup = setup
        self.config = setup.config
        self.processes = processes
        self.accelerator = accelerator = processes.accelerator
        self._place(setup.teacher)
        settings, ema = self.config.optimiser, self.config.train.ema
        rates = {"student": settings.student_lr, "fake": settings.fake_lr}
        self.optimisers = {
            role: accelerator.prepare_optimizer(make_optimiser(self.trained[role], lr=rates[role], settings=settings))
            for role in TRAINED
        }
        self.average = None if ema is None else WeightAverage(self.trained["student"], ema)
        self._states = None
        if self.waits:
            device = processes.device
            self._states = {role: ParkedOptimiser(self.optimisers[role].optimizer, device) for role in TRAINED}

    @property
    def waits(self):
        """Whether what is not needed waits in main memory."""
        return self.config.train.offload == "waiting"

    def step(self, role):
        """Step and clear the optimiser of a role."""
        optimiser = self.optimisers[role]
        self._rest()
        with self._states[role].here() if self._states else contextlib.nullcontext():
            optimiser.step()
        optimiser.zero_grad()
        self._stepped(role)

    def _rest(self):  # noqa: B027 - there may be nothing that waits
        """Let networks that nothing needs wait in main memory."""

    def _stepped(self, role):  # noqa: B027
        """What is to be done when the gradients of a role are used up."""

    @abstractmethod
    def _place(self, teacher):
        """Make the three networks of the loaded teacher on the device; it may be taken over."""

    @abstractmethod
    def export(self, path, *, update):
        """Write the student as a file that ComfyUI loads, as it is now. Raises RMDError."""

    @contextlib.contextmanager
    def averaged(self):
        """Within the block the student has its averaged weights, if there is an average; gives the student."""
        if self.average is None:
            yield self.student
        else:
            self._rest()
            with self.average.applied_to(self.trained["student"]):
                yield self.student

    def student_moved(self):
        """To be called after each step of the student: takes its weights into the average."""
        if self.average is not None:
            self._rest()
            self.average.update(self.trained["student"])

    def parts(self):
        """What a checkpoint is made of, as it is now: ``{part: {name: tensor}}``."""
        parts = {role: self.trained[role].state_dict() for role in TRAINED}
        parts |= {f"{role}_optimiser": optimiser_tensors(self.optimisers[role].optimizer) for role in TRAINED}
        return parts if self.average is None else parts | {"average": self.average.tensors}

    def load(self, checkpoint):
        """Continue from a Checkpoint. Raises RMDError for one of other networks."""
        self._rest()
        for role in TRAINED:
            weights = self.trained[role].state_dict()
            if not fits(checkpoint.parts[role], weights):
                raise RMDError(
                    f"{checkpoint.path}: its {role} does not fit the teacher {self.config.backbone.base}; "
                    "delete that folder to resume from the checkpoint before"
                )
            for name, tensor in weights.items():
                put(tensor, checkpoint.parts[role][name])
            optimiser = self.optimisers[role].optimizer
            load_optimiser_tensors(optimiser, checkpoint.parts[f"{role}_optimiser"], checkpoint.path)
            if self._states:
                self._states[role].settle()
        if self.average is not None:
            self.average.load(checkpoint.parts["average"], checkpoint.path)
