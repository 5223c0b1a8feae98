"""Time and memory of updates, the trainer's and the plain loop's in turn, over blocks that are the same mixture."""

import itertools
import statistics
import time
from dataclasses import dataclass

import torch

from training.live_memory import LiveMemory

from .plain_loop import PlainLoop

WAYS = ("trainer", "plain")


class Clock:
    """Seconds of a device between two marks: events on an accelerator, CPU time of this process on the CPU."""

    def __init__(self, device):
        self._module = None if device.type == "cpu" else torch.get_device_module(device)

    def seconds(self, work):
        """The seconds that ``work()`` takes."""
        if self._module is None:
            began = time.process_time()
            work()
            return time.process_time() - began
        began, ended = (self._module.Event(enable_timing=True) for _ in range(2))
        began.record()
        work()
        ended.record()
        self._module.synchronize()
        return began.elapsed_time(ended) / 1000

    def peak(self, work):
        """The most bytes that tensors hold on an accelerator while ``work()`` runs; on the CPU, those made in it."""
        if self._module is None:
            with LiveMemory() as memory:
                work()
            return memory.peak
        self._module.empty_cache()
        self._module.reset_peak_memory_stats()
        work()
        self._module.synchronize()
        return self._module.max_memory_allocated()


@dataclass(frozen=True)
class Updates:
    """Both ways to make update number n of one trainer, and the numbers of blocks that are alike."""

    trainer: object
    plain: PlainLoop

    @classmethod
    def of(cls, trainer):
        return cls(trainer, PlainLoop(trainer))

    def run(self, way, numbers):
        """Make the updates of these numbers one way."""
        update = self.trainer.update if way == "trainer" else self.plain.update
        for number in numbers:
            update(number)

    def blocks(self):
        """Blocks of update numbers, without end. In each the draws of both phases meet every kind once.

        A kind is a step of the plan where a batch is one sample, else a stage.
        """
        numbers, plan = itertools.count(1), self.trainer.setup.plan
        single = self.trainer.config.train.batch == 1
        kinds = len(plan.steps) if single else len(plan.stages)

        def kind(draw):
            return int(draw.steps[0]) if single else draw.stage

        while True:
            block = {}
            for number in numbers:
                first, second = (kind(draw) for draw in self.plain.drawn(number))
                if second == (first + 1) % kinds:
                    block.setdefault(first, number)
                if len(block) == kinds:
                    break
            yield [block[first] for first in sorted(block)]


def timed(updates, count, *, warmup=1):
    """Seconds of an update for each way, ``count`` blocks of each, one way after the other and changing first."""
    clock = Clock(updates.trainer.device)
    seconds = {way: [] for way in WAYS}
    for number, block in enumerate(itertools.islice(updates.blocks(), count + warmup)):
        for way in WAYS if number % 2 else reversed(WAYS):
            spent = clock.seconds(lambda way=way, block=block: updates.run(way, block))
            seconds[way].append(spent / len(block))
    return {way: spent[warmup:] for way, spent in seconds.items()}


def figures(seconds):
    """Median milliseconds of an update, and the ratio plain / trainer of each pair: median and quartiles."""
    ratios = [plain / ours for ours, plain in zip(seconds["trainer"], seconds["plain"])]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "trainer_ms": 1000 * statistics.median(seconds["trainer"]),
        "plain_ms": 1000 * statistics.median(seconds["plain"]),
        "ratio": middle,
        "low": low,
        "high": high,
    }


def peaks(updates):
    """The most bytes held in an update for each way, with weights and optimiser states.

    It is one whose student is trained at the final size, where the most is held. To be asked for after ``timed``, when
    the optimisers have their states.
    """
    clock, block = Clock(updates.trainer.device), next(updates.blocks())
    still = standing_bytes(updates.trainer) if updates.trainer.device.type == "cpu" else 0
    found = {}
    for way, phase in zip(WAYS, (0, 1)):  # the trainer's student shares the fake score's draw
        largest = max(block, key=lambda number, phase=phase: int(updates.plain.drawn(number)[phase].steps.max()))
        found[way] = still + clock.peak(lambda way=way, number=largest: updates.run(way, [number]))
    return found


def standing_bytes(trainer):
    """Bytes of weights, optimiser states and weight average, each tensor once."""
    networks = trainer.networks
    tensors = [p for role in (networks.student, networks.fake, networks.teacher) for p in role.parameters()]
    for optimiser in networks.optimisers.values():
        states = optimiser.optimizer.state_dict()["state"].values()
        tensors += [value for entries in states for value in entries.values()]
    if networks.average is not None:
        tensors += networks.average.tensors.values()
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
