"""Runs of distill.py in several processes on this machine, forked from a server that has everything imported."""

import functools
import io
import multiprocessing
import os
import resource
import socket
import sys
import time
import traceback
from multiprocessing import forkserver

import torch
from huggingface_hub import constants

from training_world import distill

BOUND = 100  # seconds after which a run that hangs is ended, and its test fails


class Run:
    """distill.py in ``count`` processes on one world.

    ``sharded``: as an accelerate configuration with FSDP asks for it. ``each``: further overrides for single ranks.
    ``limits``: for single ranks, the bytes that no file may grow beyond, as on a full disk. ``hub``: constants of
    huggingface_hub in the processes.
    """

    def __init__(self, count, world, *overrides, flags=(), sharded=False, each=None, limits=None, hub=None):
        self.world = world
        context = server()
        shared = _launched(count, sharded)
        self.processes = []
        for rank in range(count):
            mine = (*overrides, *(each or {}).get(rank, ()))
            variables = {**shared, "RANK": rank, "LOCAL_RANK": rank} if count > 1 else {}
            arguments = (world, rank, variables, mine, flags, (limits or {}).get(rank), hub or {})
            self.processes.append(context.Process(target=_one, args=arguments))
            self.processes[-1].start()

    def codes(self):
        """The exit codes, once all processes have ended."""
        deadline = time.monotonic() + BOUND
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        hanging = [process for process in self.processes if process.is_alive()]
        for process in hanging:
            process.kill()
            process.join()
        assert not hanging, "\n".join(self.printed())
        return [process.exitcode for process in self.processes]

    def printed(self):
        """What each process has printed."""
        paths = (self.world / f"printed_{rank}.txt" for rank in range(len(self.processes)))
        return [path.read_text(encoding="utf-8") for path in paths]

    def errors(self):
        """The error lines of each process."""
        return [[line for line in text.splitlines() if line.startswith("error:")] for text in self.printed()]

    def error(self):
        """The one error line of a run, which the first process has printed; no process shows a traceback."""
        first, *others = self.errors()
        assert len(first) == 1 and not any(others), self.printed()
        assert not any("Traceback" in text for text in self.printed())
        return first[0]

    def wait_for_update(self, folder, update):
        """Wait until the record has reached an update; all processes are still running then."""
        path, deadline = folder / "metrics.jsonl", time.monotonic() + BOUND
        while time.monotonic() < deadline:
            assert all(process.is_alive() for process in self.processes), "\n".join(self.printed())
            if path.exists() and len(path.read_text(encoding="utf-8").splitlines()) >= update:
                return
            time.sleep(0.05)
        raise AssertionError("the run made no progress")


@functools.cache
def server():
    """A multiprocessing context whose processes are forked from a server that has everything imported.

    Before Python 3.13 the server gets this process's path only from PYTHONPATH. It ignores imports that fail, and then
    every process imports all by itself.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["process_world", "training.trainer", "training.text_encoders", "encoder_world"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return context


def distill_on(count, world, *overrides, **settings):
    """A Run that has ended well."""
    run = Run(count, world, *overrides, **settings)
    assert run.codes() == [0] * count, "\n".join(run.printed())
    return run


def on_each(count, function, *arguments, sharded=False):
    """What ``function(*arguments)`` returns in each of ``count`` processes of a run, in their order."""
    context, shared = server(), _launched(count, sharded)
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = []
    for rank, (_, sender) in enumerate(pipes):
        variables = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        processes.append(context.Process(target=_answer, args=(sender, variables, function, arguments)))
        processes[-1].start()
        sender.close()
    try:
        found = [receiver.recv() if receiver.poll(BOUND) else "no answer" for receiver, _ in pipes]
    except EOFError:
        found = ["a process ended without an answer"]
    for process in processes:
        process.kill()
        process.join()
    wrong = [answer for answer in found if isinstance(answer, str)]
    assert not wrong, "\n".join(wrong)
    return [torch.load(io.BytesIO(answer), weights_only=True) for answer in found]


def _answer(sender, variables, function, arguments):
    os.environ.update({name: str(value) for name, value in variables.items()})
    try:
        answer = io.BytesIO()
        torch.save(function(*arguments), answer)
        sender.send(answer.getvalue())
    except BaseException:
        sender.send(traceback.format_exc())


def _launched(count, sharded):
    """The environment of a run, as a launcher of several processes sets it, without the rank."""
    return {
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": _free_port(),
        "ACCELERATE_USE_FSDP": str(sharded).lower(),
    }


def _one(world, rank, variables, overrides, flags, limit, hub):
    os.environ.update({name: str(value) for name, value in variables.items()})
    with open(world / f"printed_{rank}.txt", "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for name, value in hub.items():
        setattr(constants, name, value)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(distill(world, *overrides, flags=flags))


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
