"""Timed runs of a model through the cascade engine, and the figures of a row: medians with quartiles."""

import statistics
import time
from dataclasses import dataclass

import torch
from torch.nn import Module, Parameter

from benchmarks.models import outline, random_conditioning, random_network
from benchmarks.results import quartiles
from rmd_core.boundary import Boundary
from rmd_core.noise import SeededNoise
from training.backbones import make_backbone
from training.objective import Guidance
from training.offload import ran_out_of_memory
from training.sample import sample_latents

RUNS = (3, 10)  # at least and at most, as long as `SECONDS` are not up
SECONDS = 15.0
LONG = 30.0  # a run that takes longer is made once, and of one at a single size only `FEW_STEPS`
FEW_STEPS = 3
SCALE = 5.0  # of the guidance; any other takes as long
ETA = 0.5  # of a student; a teacher's steps are deterministic
COMPILED_SHAPES = 64  # kept beside each other; PyTorch's own 8 are fewer than sizes times kinds of block


class DeviceClock:
    """Marks in the work of a device and the seconds between two of them; on the CPU, of the process's CPU time."""

    def __init__(self, device):
        device = torch.device(device)
        self._module = None if device.type == "cpu" else torch.get_device_module(device)

    def mark(self):
        """A mark behind the work queued so far; nothing waits for it."""
        if self._module is None:
            return time.process_time()
        event = self._module.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, began, ended):
        """Seconds between two marks; on an accelerator only after ``wait``."""
        return ended - began if self._module is None else began.elapsed_time(ended) / 1000

    def wait(self):
        """Return when the device has done everything queued."""
        if self._module is not None:
            self._module.synchronize()

    def timed(self, work):
        """Seconds that the device takes for what ``work`` queues."""
        self.wait()
        began = self.mark()
        work()
        ended = self.mark()
        self.wait()
        return self.seconds(began, ended)

    def start_peak(self):
        """Let ``peak`` count from here."""
        if self._module is not None:
            self._module.empty_cache()
            self._module.reset_peak_memory_stats()

    def peak(self):
        """The most bytes that tensors took on the device, weights included; None on the CPU."""
        return None if self._module is None else self._module.max_memory_allocated()


class TimedNetwork(Module):
    """A network that marks the clock before and after each of its calls, in ``calls``: (height, width), two marks."""

    def __init__(self, network, clock):
        super().__init__()
        self.network = network
        self.clock = clock
        self.calls = []

    @property
    def config(self):
        return self.network.config

    def forward(self, x, *arguments, **named):
        began = self.clock.mark()
        output = self.network(x, *arguments, **named)
        self.calls.append((tuple(x.shape[-2:]), began, self.clock.mark()))
        return output


@dataclass(frozen=True)
class Run:
    """Seconds of one cascade from noise to latent, and of each network call in it, by (height, width)."""

    seconds: float
    calls: tuple

    @property
    def outside(self):
        """The share of the time that is not spent in network calls."""
        return 1.0 - sum(seconds for _, seconds in self.calls) / self.seconds


class Idle(Module):
    """A network that does nothing: its output is its input."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.one = Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x, *arguments, **named):
        return (x,)


class Subject:
    """A SpeedModel with random weights on a device; ``mode``: eager, compile, or idle (a network that does nothing)."""

    def __init__(self, model, *, device, dtype, mode):
        self.model = model
        self.device = torch.device(device)
        self.dtype = dtype
        self.mode = mode
        self.backbone = make_backbone(model.backbone)
        self.clock = DeviceClock(device)
        if mode == "idle":
            network = Idle(outline(*model.network).config)
        else:
            network = random_network(*model.network, device=self.device, dtype=dtype)
        if mode == "compile":
            compile_in_place(network)
        self.network = TimedNetwork(network, self.clock)

    def sample(self, way, batch):
        """Sample a way once and give its Run."""
        self.network.calls.clear()
        guidance = Guidance(SCALE, self._conditioning(batch, seed=2)) if way.guided else None
        conditioning = self._conditioning(batch, seed=1)
        seconds = self.clock.timed(
            lambda: sample_latents(
                self.backbone,
                self.network,
                way.plan,
                conditioning=conditioning,
                noise=SeededNoise(0),
                boundary=Boundary(),
                eta=1.0 if way.guided else ETA,
                frames=self.model.frames,
                guidance=guidance,
                device=self.device,
            )
        )
        return Run(seconds, tuple((size, self.clock.seconds(*marks)) for size, *marks in self.network.calls))

    def decoder(self):
        """A function that decodes the latent of one sample at the final size and gives the seconds it took."""
        vae = random_network(*self.model.vae, device=self.device, dtype=self.dtype)
        shape = (*self.backbone.latent_shape(1, self.model.frames), *self.model.high)
        latent = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(self.device)
        return lambda: self.clock.timed(lambda: self.backbone.decode(vae, latent))

    def _conditioning(self, batch, *, seed):
        return random_conditioning(
            self.backbone, self.network, tokens=self.model.tokens, batch=batch, device=self.device, seed=seed
        )


def compile_in_place(network):
    """Compile a network for fixed shapes: a stack of blocks block by block, any other as a whole with CUDA graphs."""
    torch._dynamo.config.recompile_limit = COMPILED_SHAPES
    blocks = getattr(network, "blocks", None) or getattr(network, "transformer_blocks", None)
    if blocks is None:
        network.compile(dynamic=False, mode="reduce-overhead")
        return
    for block in blocks:
        block.compile(dynamic=False)


def measure_way(subject, way, batch):
    """The figures of a way at a batch size.

    seconds: of the whole batch, denoiser only; calls: of one network call by size; outside: the share of the time
    around the calls; peak_bytes; runs; steps_run: the steps that were timed, all of the plan's unless a run is long.
    """
    subject.clock.start_peak()
    step = _warm_up(subject, way, batch)
    timed, expected = way, way.steps * step
    if expected > LONG and len(way.plan.stages) == 1 and way.steps > FEW_STEPS:
        timed, expected = way.shortened(FEW_STEPS), FEW_STEPS * step
    runs = repeated(lambda: subject.sample(timed, batch), expected)
    calls = {}
    for size, seconds in (call for run in runs for call in run.calls):
        calls.setdefault(f"{size[0]}x{size[1]}", []).append(seconds)
    return {
        "seconds": quartiles(run.seconds * way.steps / timed.steps for run in runs),
        "calls": {size: quartiles(seconds) for size, seconds in calls.items()},
        "outside": statistics.median(run.outside for run in runs),
        "peak_bytes": subject.clock.peak(),
        "runs": len(runs),
        "steps_run": timed.steps,
        "batch": batch,
    }


def measure_decoding(subject):
    """The figures of decoding one sample at the final size."""
    subject.clock.start_peak()
    decode = subject.decoder()
    runs = repeated(decode, expected=decode())
    return {"seconds": quartiles(runs), "peak_bytes": subject.clock.peak(), "runs": len(runs), "batch": 1}


def repeated(run, expected):
    """The results of several calls of ``run``; ``expected``: seconds that one is thought to take."""
    results = [run()]
    least, most = (1, 1) if expected > LONG else RUNS
    began = time.monotonic()
    while len(results) < most and (len(results) < least or time.monotonic() - began < SECONDS):
        results.append(run())
    return results


def _warm_up(subject, way, batch):
    """Run every size, gives the seconds of a step: once where that is long, else three times, at least twice compiled.

    The first run of a compiled network compiles it, the second records its CUDA graph.
    """
    warm = way.warm_up()
    for turn in range(3):
        began = time.monotonic()
        subject.sample(warm, batch)
        step = (time.monotonic() - began) / warm.steps
        if step > LONG / 6 and (turn or subject.mode == "eager"):
            break
    return step


def largest_batch(fits, most):
    """The largest power of two up to ``most`` for which ``fits(batch)`` does not run out of memory; 0 for none."""
    batch = 0
    while 2 * batch <= most:
        following = max(1, 2 * batch)
        try:
            fits(following)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            break
        batch = following
    return batch
