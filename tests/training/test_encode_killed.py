"""encode_prompts killed with SIGKILL at several moments, and two at once: real processes, on one cache."""

import multiprocessing
import os
import signal
import time

import pytest

from encoder_world import encode_slowly, write_model
from rmd_core.prompt_cache import PromptCache, shard_files
from training.encode_prompts import encode_prompts, main
from training.text_encoders import TextEncoders
from training_world import refused

TEXTS = [f"word {number}" for number in range(40)]
BOUND = 180  # seconds after which a process that does nothing fails its test


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model("pixart_sigma", tmp_path_factory.mktemp("models") / "model")


def start(model, out):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["process_world", "training.trainer", "training.text_encoders"])
    process = context.Process(target=encode_slowly, args=(model, TEXTS, out))
    process.start()
    return process


def wait_for(process, out, count):
    """Wait until there are ``count`` files."""
    deadline = time.monotonic() + BOUND
    while len(shard_files(out)) < count:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.001)


def test_kill_9_loses_nothing_but_the_file_being_written(model, tmp_path):
    out, found = tmp_path / "cache", 0
    for more in (1, 7):
        process = start(model, out)
        wait_for(process, out, found // 2 + more)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        before, found = found, len(PromptCache(out).texts)
        assert before + 2 * more <= found < len(TEXTS) and found % 2 == 0
    assert encode_prompts(TextEncoders(model), TEXTS, out, batch=1, shard=2) == len(TEXTS) - found
    assert encode_prompts(TextEncoders(model), TEXTS, tmp_path / "whole", batch=1, shard=2) == len(TEXTS)
    here, there = PromptCache(out), PromptCache(tmp_path / "whole")
    assert here.digest(["", *TEXTS]) == there.digest(["", *TEXTS]) and here.texts == there.texts
    assert sorted(path.name for path in out.iterdir()) == [".lock", *(path.name for path in shard_files(out))]
    assert [path.read_bytes() for path in shard_files(out)] == [
        path.read_bytes() for path in shard_files(tmp_path / "whole")
    ]


def test_of_two_at_once_one_is_refused_and_the_other_ends_well(model, tmp_path, capsys):
    out, prompts = tmp_path / "cache", tmp_path / "prompts.txt"
    prompts.write_text("\n".join([*TEXTS, "one more"]), encoding="utf-8")
    process = start(model, out)
    wait_for(process, out, 1)
    arguments = ["--model", str(model), "--prompts", str(prompts), "--out", str(out), "--device", "cpu"]
    assert main(arguments) == refused(capsys, 2, f"another process is adding prompts to {out}", "wait until")
    process.join(BOUND)
    assert process.exitcode == 0 and set(PromptCache(out).texts) == set(TEXTS)
    assert main(arguments) == 0 and set(PromptCache(out).texts) == {*TEXTS, "one more"}
