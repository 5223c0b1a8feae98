"""What a row of the speed table holds: medians with quartiles over several runs, after a warm-up."""

import statistics
import time

from training.offload import ran_out_of_memory

RUNS = (3, 10)  # at least and at most, as long as `SECONDS` are not up
SECONDS = 15.0
LONG = 30.0  # a run that takes longer is made once, and of one at a single size only `FEW_STEPS`
FEW_STEPS = 3


def quartiles(values):
    """{"median", "low", "high"} of some figures; all the same for a single one."""
    values = list(values)
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": median, "low": low, "high": high}


def repeated(run, expected):
    """The results of several calls of ``run``; ``expected``: seconds that one is thought to take."""
    results = [run()]
    least, most = (1, 1) if expected > LONG else RUNS
    began = time.monotonic()
    while len(results) < most and (len(results) < least or time.monotonic() - began < SECONDS):
        results.append(run())
    return results


def measure_way(subject, way, batch):
    """The figures of a way at a batch size.

    seconds: of the whole batch, denoiser only; calls: of one network call by size; outside: the share of the time
    around the calls; peak_bytes; runs; steps_run: the steps that were timed, all of the plan's unless a run is long.
    """
    subject.clock.start_peak()
    step = _warm_up(subject, way, batch)
    expected = way.steps * step
    timed = way
    if expected > LONG and len(way.plan.stages) == 1 and way.steps > FEW_STEPS:
        timed = way.shortened(FEW_STEPS)
        expected = timed.steps * step
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


def measure_decoding(subject):
    """The figures of decoding one sample at the final size."""
    subject.clock.start_peak()
    decode = subject.decoder()
    expected = decode()
    runs = repeated(decode, expected)
    return {"seconds": quartiles(runs), "peak_bytes": subject.clock.peak(), "runs": len(runs), "batch": 1}


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
