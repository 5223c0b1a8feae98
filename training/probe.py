"""A measured answer to what a run will take: ``distill.py --probe``. It trains a few updates and keeps nothing."""

import time
from dataclasses import dataclass
from functools import partial

import psutil
import torch

from .memory import gib

EACH = 2  # updates of every stage; the first one warms up


@dataclass(frozen=True)
class Measured:
    """Seconds of one piece of work on the device, and the most memory in use meanwhile, in bytes."""

    seconds: float
    peak: int


def probe(trainer, *, price=None):
    """Run EACH updates of every stage and a validation on the real device; returns the report as text.

    ``price``: of one device for an hour, in any currency; None leaves the cost out. All processes call it together.
    """
    config, sampler, updates = trainer.config, trainer.sampler, []
    number = max(config.train.warmup_updates, config.train.fake_only_updates)
    for stage in trainer.setup.plan.stages:
        trainer.sampler = sampler.of_stage(stage.index)
        for _ in range(EACH):
            number += 1
            measured = _measured(trainer.device, partial(trainer.update, number))
        updates.append(measured)
    trainer.sampler = sampler
    validation, times = None, 0
    if trainer.validation is not None:
        validation = _measured(trainer.device, trainer.show)
        times = 1 + -(-config.train.updates // config.output.validate_every)
    return _report(trainer, updates, validation, times, price)


def _measured(device, work):
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    return Measured(seconds, torch.cuda.max_memory_allocated(device) if cuda else psutil.Process().memory_info().rss)


def _report(trainer, updates, validation, times, price):
    train, count = trainer.config.train, trainer.processes.count
    name = torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else "the CPU"
    lines = [f"measured on {name}, {count} process{'es' * (count > 1)}, {trainer.samples} samples an update"]
    for stage, measured in zip(trainer.setup.plan.stages, updates):
        rate = trainer.samples / measured.seconds
        lines.append(
            f"stage {stage.index + 1}, {stage.height}x{stage.width} cells: {measured.seconds:.3g} s an update, "
            f"{rate:.3g} samples a second, {gib(measured.peak)} in use at most"
        )
    each = sum(measured.seconds for measured in updates) / len(updates)
    speed = trainer.flops / each / count / 1e12
    share = f", {speed / trainer.matmul:.0%} of a large matrix product" if trainer.device.type == "cuda" else ""
    lines.append(f"arithmetic: {speed:.3g} TFLOP a second on each device{share}")
    total = train.updates * each
    if validation is not None:
        lines.append(f"validation: {validation.seconds:.3g} s, {gib(validation.peak)} in use at most")
        total += times * validation.seconds
    hours = total / 3600
    lines.append(f"the whole run: {train.updates} updates, {times} validations, {hours:.3g} hours")
    if price is not None:
        lines.append(f"cost: {hours * count:.3g} device hours at {price:g} are {hours * count * price:.3g}")
    return "\n".join(lines)
