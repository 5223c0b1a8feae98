"""Distil a text-to-image or text-to-video model into a few-step, multi-resolution student.

    python training/distill.py --config training/configs/demo.yaml [--set train.batch=8 ...] [--dry-run] [--resume]

Exit codes: 0 done; 1 the run failed (a value that is not finite, a full disk); 2 bad input, no training took place;
130 or 143 stopped by Ctrl-C or SIGTERM, with a checkpoint saved (a second signal acts at once).
"""

import argparse
import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [str(ROOT), *(p for p in sys.path if Path(p or ".").resolve() not in (ROOT, ROOT / "training"))]

from rmd_core.errors import RMDError, one_line  # noqa: E402


def main(argv=None):
    """Run the command line ``argv`` and return its exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    logging.getLogger("training").setLevel(logging.INFO)
    try:
        return _distill(arguments)
    except KeyboardInterrupt:
        return _say("stopped at once; a run that has checkpoints continues from the last one with --resume", 130)


def _distill(arguments):
    from training.config_files import load_config

    try:
        config = load_config(arguments.config, arguments.set).resolved()
        # Imported here so that a slip in the configuration is told in a second or two, before diffusers has loaded.
        from training.errors import ran_out_of_memory
        from training.processes import Processes

        processes = Processes(config)
    except RMDError as error:
        return _say(error, 2)
    if not processes.main:
        logging.getLogger("training").setLevel(logging.ERROR)
    try:
        with ExitStack() as held:
            return _run(arguments, config, processes, held)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        return _say(
            f"the memory of {processes.device} ran out ({one_line(error, 200)}); --dry-run prints what a "
            "run needs, and backbone.gradient_checkpointing, train.guidance_calls and train.offload can be changed to "
            "need less, also with --resume",
            1,
            everywhere=True,
        )
    finally:
        processes.close()


def _run(arguments, config, processes, held):
    from training.dry_run import dry_run_report
    from training.hub import pin_models
    from training.processes import ProcessLost
    from training.run_folder import check_folder, claim_folder, data_digests, known_commits
    from training.run_lock import RunLock
    from training.setup import prepare
    from training.stopping import StopSignals
    from training.trainer import Trainer

    try:
        processes.check_same(config)
        config, commits = pin_models(config, processes, known_commits(config) if arguments.resume else {})
        spread = processes.count if processes.sharded else 1
        planned = memory = None
        if config.prompts.encode_from is not None:
            # Imported only where it is needed: text encoders take seconds.
            from training.first_use import make_cache, planned_cache

            if arguments.dry_run:
                with processes.together():
                    planned = planned_cache(config)
            else:
                memory = processes.first_alone(make_cache(config, device=processes.device, spread=spread))
        with processes.together():
            setup = prepare(config, spread=spread, planned=planned, memory=memory)
        if arguments.dry_run:
            if processes.main:
                print(dry_run_report(setup, processes=processes.count))
            return 0
        with processes.together():
            if processes.main:
                data = data_digests(config, setup.prompts, setup.cache)
                folder = check_folder(config, data, resume=arguments.resume)
                held.enter_context(RunLock(folder))
                check_folder(config, data, resume=arguments.resume)  # another run may have begun since
        with processes.together():
            trainer = Trainer(setup, processes)
        trainer.restore()
        with processes.together():
            if processes.main:
                claim_folder(config, data, folder, commits)
    except RMDError as error:
        return _say(error, 2, everywhere=isinstance(error, ProcessLost))
    with StopSignals(launcher=processes.count > 1) as signals:
        try:
            return trainer.run(signals)
        except RMDError as error:
            return _say(error, 1, everywhere=isinstance(error, ProcessLost))


def _parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="See docs/training.md.")
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML configuration")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one value; repeatable")
    parser.add_argument("--dry-run", action="store_true", help="print plan, parameters and cost, and train nothing")
    parser.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    return parser


def _say(error, code, *, everywhere=False):
    """Print an error once, in the first process of each machine; or in every process that is left."""
    if everywhere or int(os.environ.get("LOCAL_RANK", "0")) <= 0:
        print(f"error: {one_line(error)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
