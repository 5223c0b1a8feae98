"""distill.py in a Python of its own: alone, or as the real commands torchrun and `accelerate launch` start it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from training_world import metrics

ROOT = Path(__file__).parents[1]
ACCELERATE = ROOT / "training" / "configs" / "accelerate"
BOUND = 180  # seconds after which a run that hangs is ended, and its test fails
COMMANDS = {  # any free port; the rest is as docs/train/gpus.md has it
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    "ddp": ("accelerate.commands.launch", "--config_file", ACCELERATE / "ddp.yaml", "--main_process_port", "0"),
    "fsdp2": ("accelerate.commands.launch", "--config_file", ACCELERATE / "fsdp2.yaml", "--main_process_port", "0"),
}


class Launched:
    """distill.py in two processes on a world, started by one of COMMANDS; ended at the end of the block."""

    def __init__(self, command, world, *overrides):
        self.printed_to = world / f"printed by {command}.txt"
        sets = [part for override in overrides for part in ("--set", override)]
        program = (ROOT / "training" / "distill.py", "--config", world / "config.yaml", *sets)
        arguments = [sys.executable, "-m", *COMMANDS[command], *program]
        with open(self.printed_to, "wb") as printed:
            self.launcher = psutil.Popen(
                [str(argument) for argument in arguments],
                cwd=world,
                env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
                | {"OMP_NUM_THREADS": "1"},
                stdout=printed,
                stderr=subprocess.STDOUT,
            )
        self.deadline = time.monotonic() + BOUND

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.launcher.is_running():
            for process in (*self.launcher.children(recursive=True), self.launcher):
                process.kill()
        self.launcher.wait()

    def code(self):
        """The launcher's exit code, once it has ended."""
        try:
            return self.launcher.wait(max(0.0, self.deadline - time.monotonic()))
        except psutil.TimeoutExpired:
            raise AssertionError(f"the run hangs:\n{self.printed()}") from None

    def printed(self):
        """What launcher and processes have printed."""
        return self.printed_to.read_text(encoding="utf-8")

    def errors(self):
        """The error lines of distill.py."""
        return [line for line in self.printed().splitlines() if line.startswith("error:")]

    def wait_for_update(self, folder, update):
        """Wait until the record has reached an update; the run still goes on then."""
        while time.monotonic() < self.deadline:
            assert self.launcher.poll() is None, self.printed()
            if (folder / "metrics.jsonl").exists() and len(metrics(folder)) >= update:
                return
            time.sleep(0.05)
        raise AssertionError(f"the run made no progress:\n{self.printed()}")

    def kill(self, rank):
        """Kill one process as the system does when memory is short."""
        found = [process for process in self.launcher.children() if process.environ().get("RANK") == str(rank)]
        assert len(found) == 1
        found[0].kill()


def finished(config, *overrides, flags=()):
    """(exit code, what was printed) of distill.py in a Python of its own, run in the folder of its configuration."""
    sets = [part for override in overrides for part in ("--set", override)]
    process = subprocess.run(
        [sys.executable, str(ROOT / "training" / "distill.py"), "--config", str(config), *sets, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=config.parent,
        timeout=BOUND,
    )
    return process.returncode, process.stdout
