"""Time and memory of updates, the trainer's and the plain loop's in turn, over blocks that are the same mixture."""

import itertools
import statistics
from dataclasses import dataclass

from benchmarks.peak_memory import PeakMemory
from benchmarks.speed.clock import DeviceClock

from .plain_loop import PlainLoop

WAYS = ("trainer", "plain")


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
    clock = DeviceClock(updates.trainer.device)
    seconds = {way: [] for way in WAYS}
    for number, block in enumerate(itertools.islice(updates.blocks(), count + warmup)):
        for way in WAYS if number % 2 else reversed(WAYS):
            began = clock.mark()
            updates.run(way, block)
            ended = clock.mark()
            clock.wait()
            seconds[way].append(clock.seconds(began, ended) / len(block))
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
    device, block = updates.trainer.device, next(updates.blocks())
    still = standing_bytes(updates.trainer) if device.type == "cpu" else 0
    found = {}
    for way, phase in zip(WAYS, (0, 1)):  # the trainer's student shares the fake score's draw
        largest = max(block, key=lambda number, phase=phase: int(updates.plain.drawn(number)[phase].steps.max()))
        with PeakMemory(device) as memory:
            updates.run(way, [largest])
        found[way] = still + memory.peak
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
