"""Distil a text-to-image or text-to-video model into a few-step, multi-resolution student.

    python training/distill.py --config training/configs/demo.yaml [--set train.batch=8 ...]
                               [--dry-run | --probe] [--resume | --branch FOLDER]

Exit codes: 0 done; 1 the run failed (a value that is not finite, a full disk); 2 bad input, no training took place;
130 or 143 stopped by Ctrl-C or SIGTERM, with a checkpoint saved (a second signal acts at once).

From here an update is read in ``trainer`` (the loop) and ``objective`` (the losses).
"""

import argparse
import logging
import os
import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [str(ROOT), *(p for p in sys.path if Path(p or ".").resolve() not in (ROOT, ROOT / "training"))]

from rmd_core.errors import RMDError, one_line  # noqa: E402
from training.config import load_config  # noqa: E402


def main(argv=None):
    """Run the command line ``argv`` and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="See docs/train/guide.md.")
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML configuration")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one value; repeatable")
    parser.add_argument("--dry-run", action="store_true", help="print plan, parameters and cost, and train nothing")
    parser.add_argument("--probe", action="store_true", help="measure memory and time with a few updates, keep nothing")
    parser.add_argument("--price", type=float, metavar="X", help="with --probe: price of one device for an hour")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    start.add_argument(
        "--branch", metavar="FOLDER", help="start a run from the newest checkpoint of another, with other settings"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logging.getLogger("training").setLevel(logging.INFO)
    try:
        config = load_config(arguments.config, arguments.set).resolved()
        return _distill(arguments, config)
    except RMDError as error:
        return _say(error, 2)
    except KeyboardInterrupt:
        return _say("stopped at once; a run that has checkpoints continues from the last one with --resume", 130)


def _distill(arguments, config):
    """One run in this process, from a checked configuration to the exit code. Raises RMDError for a wrong launch."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is of PyTorch before 2.9
    if config.train.expandable_segments and sys.platform == "linux" and not any(name in os.environ for name in names):
        os.environ |= dict.fromkeys(names, "expandable_segments:True")
    # Imported here so that a mistake in the configuration is answered at once, before torch and diffusers have loaded.
    from training.offload import ran_out_of_memory
    from training.parallel import Processes
    from training.speed import set_backends

    set_backends(config.train)
    processes = Processes(config)
    if not processes.main:
        logging.getLogger("training").setLevel(logging.ERROR)
    try:
        with ExitStack() as stack:  # which holds the lock of the output folder
            if arguments.dry_run:
                stack.enter_context(_fewer_imports(config))
            return _run(arguments, config, processes, stack)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        return _say(
            f"the memory of {processes.device} ran out ({one_line(error, 200)}); --dry-run prints the least that a "
            "run needs, and backbone.gradient_checkpointing, train.guidance_calls and train.offload can be changed to "
            "need less, also with --resume",
            1,
            everywhere=True,
        )
    finally:
        processes.close()


@contextmanager
def _fewer_imports(config):
    """Within the block diffusers imports its networks without the packages that only other parts of it need.

    A dry run is twice as fast so. Nothing where diffusers is imported already, or the configuration needs one of them.
    """
    needs_bitsandbytes = config.optimiser.kind == "adamw8bit" or config.model.base_dtype in ("int8", "nf4")
    if "diffusers" in sys.modules or needs_bitsandbytes or config.prompts.encode_from is not None:
        yield
        return
    from diffusers.utils import import_utils

    names = ("peft", "bitsandbytes", "transformers", "torchvision", "scipy")
    found = {flag: value for flag, value in vars(import_utils).items() if flag in {f"_{n}_available" for n in names}}
    vars(import_utils).update(dict.fromkeys(found, False))
    try:
        yield
    finally:
        vars(import_utils).update(found)


def _run(arguments, config, processes, stack):
    from training.hub import pin_models
    from training.memory import dry_run_report
    from training.parallel import ProcessLost
    from training.run import check_folder, claim_folder, data_digests, known_commits, lock_folder
    from training.setup import outline_run, prepare

    try:
        processes.check_same(config)
        config, commits = pin_models(config, processes, known_commits(config) if arguments.resume else {})
        with processes.raise_together():
            outline = outline_run(config, shards=processes.shards)
        planned = None
        if config.prompts.encode_from is not None:
            from training.encode_prompts import LiveCache, make_cache, planned_cache  # which take seconds to import

            if arguments.dry_run:
                with processes.raise_together():
                    planned = planned_cache(config)
            else:
                processes.first_alone(make_cache(config, device=processes.device))
                if config.prompts.cache is None:
                    with processes.raise_together():
                        planned = LiveCache(config, processes.device)
        with processes.raise_together():
            setup = prepare(outline, planned=planned, loads=processes.main or not processes.one_loads)
        if arguments.dry_run:
            if processes.main:
                print(dry_run_report(setup, processes=processes.shares))
            return 0
        from training.trainer import Trainer

        if arguments.probe:
            from training.probe import probe

            with processes.raise_together():
                trainer = Trainer(setup, processes)
            report = probe(trainer, price=arguments.price)
            if processes.main:
                print(report)
            return 0
        with processes.raise_together():
            if processes.main:
                data = data_digests(config, setup.prompts, setup.cache)
                folder = check_folder(config, data, resume=arguments.resume)
                stack.enter_context(lock_folder(folder))
                check_folder(config, data, resume=arguments.resume)  # another run may have started since
        with processes.raise_together():
            trainer = Trainer(setup, processes)
        trainer.restore(arguments.branch)
        with processes.raise_together():
            if processes.main:
                claim_folder(config, data, folder, commits)
    except RMDError as error:
        return _say(error, 2, everywhere=isinstance(error, ProcessLost))
    with StopSignals(launcher=processes.count > 1) as signals:
        try:
            return trainer.run(signals)
        except RMDError as error:
            return _say(error, 1, everywhere=isinstance(error, ProcessLost))


class StopSignals:
    """Within the block the first SIGINT or SIGTERM is noted in ``received``, which the loop obeys after its update.

    A second one acts at once; with ``launcher`` it does nothing: a launcher passes on what its processes may have got
    already, and ends them itself when they take too long.
    """

    def __init__(self, *, launcher=False):
        self.received = None
        self._launcher = launcher
        self._before = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        self._restore()

    def _note(self, number, _frame):
        self.received = self.received or number
        if not self._launcher:
            self._restore()

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _say(error, code, *, everywhere=False):
    """Print an error once, in the first process of each machine; or in every process that is left."""
    if everywhere or int(os.environ.get("LOCAL_RANK", "0")) <= 0:
        print(f"error: {one_line(error)}", file=sys.stderr)
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        time.sleep(10)  # torchrun ends all processes with the first that ends, which has to be the one that prints
    return code


if __name__ == "__main__":
    sys.exit(main())
