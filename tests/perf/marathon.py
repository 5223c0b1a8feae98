"""Many demo prompts in a row through a real ComfyUI server, some of them interrupted or cancelled at random moments.

    OMP_NUM_THREADS=1 PYTHONPATH=tests python -m perf.marathon [--prompts 100] [--seed 0]

Needs a ComfyUI (COMFYUI_PATH, or ~/comfy/ComfyUI) and Linux (/proc tells the memory). The prompt is the shipped demo,
tests/workflows/rmd_wired.json, with one of a few seeds; each seed is first run twice without disturbance, and both
images must be equal: that is its reference. Then every image that comes out, before, after or in spite of an
interrupt (POST /interrupt) or a cancel (POST /queue, delete), is compared with the reference of its seed, bit for bit.
The server's resident memory after the references is the level to which the end is compared.
Results: benchmarks/results/marathon.json. Exit code 1 if anything was not as it should be.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.results import FOLDER, cpu_name, provenance, write_results
from comfy_server import ComfyServer
from comfyui_checkout import find_comfyui
from demo.comparison import table

RESULTS = FOLDER / "marathon.json"
PROMPT = Path(__file__).parents[1] / "workflows" / "rmd_wired.json"
SEEDS = 5  # different seeds of one marathon, so that every one comes again and again
GROWTH_MB = 50.0  # what the server's memory may grow by between the references and the end
INTERRUPTS, CANCELS = 0.35, 0.2  # shares of the prompts: interrupted while they run, cancelled while they wait
POLL_SECONDS, MOST_SECONDS = 0.02, 300.0


@dataclass
class Report:
    """How every prompt of a marathon ended, and what was left behind; memory in MB."""

    prompts: int
    finished: int = 0
    interrupted: int = 0
    cancelled: int = 0
    failed: int = 0
    unequal: int = 0
    left_in_queue: int = 0
    memory_start: float = 0.0
    memory_end: float = 0.0
    memory_most: float = 0.0

    @property
    def fine(self):
        """Whether every prompt ended as it may, every image is right, and nothing was left."""
        ended = self.finished + self.interrupted + self.cancelled
        bad = self.failed + self.unequal + self.left_in_queue
        return ended == self.prompts and not bad and self.memory_end - self.memory_start <= GROWTH_MB


class Marathon:
    """Sends prompts to a running `ComfyServer` of tests/comfy_server.py."""

    def __init__(self, server, *, seed=0):
        self.server, self.random = server, random.Random(seed)
        self.prompt = json.loads(PROMPT.read_text(encoding="utf-8"))
        (self.sampler,) = [node for node, entry in self.prompt.items() if entry["class_type"] == "RMD_Sampler"]
        (self.saver,) = [node for node, entry in self.prompt.items() if entry["class_type"] == "SaveImage"]
        self.references, self.seconds = {}, 1.0

    def make_references(self):
        """Every seed twice, another seed in between, so that nothing is taken from the cache."""
        spent = []
        for _ in range(2):
            for seed in range(1, SEEDS + 1):
                began = time.perf_counter()
                name = self.send(seed)
                self.drain()
                spent.append(time.perf_counter() - began)
                image = self.image(name)
                if not np.array_equal(self.references.setdefault(seed, image), image):
                    raise AssertionError(f"seed {seed} gave two images in two runs that nobody disturbed")
        self.seconds = statistics.median(spent)

    def run(self, prompts):
        """Send so many prompts, disturb some, and report."""
        report = Report(prompts, memory_start=self.memory())
        report.memory_most = report.memory_start
        cancels = round(CANCELS * prompts)
        interrupts = round(INTERRUPTS * prompts)
        acts = [True] * interrupts + [False] * (prompts - cancels - interrupts)
        self.random.shuffle(acts)
        behind = [self.random.randrange(len(acts)) for _ in range(cancels)]
        for place, interrupted in enumerate(acts):
            sent = {self.send(seed): seed for seed in [self.random.randint(1, SEEDS)]}
            waiting = {
                self.send(seed): seed for seed in self.random.choices(range(1, SEEDS + 1), k=behind.count(place))
            }
            for name in waiting:
                self.post("/queue", {"delete": [name]})
            if interrupted:
                time.sleep(self.random.uniform(0.0, self.seconds))
                self.post("/interrupt", {})
            report.left_in_queue += self.drain()
            for name, seed in (sent | waiting).items():
                self.count(report, name, seed)
            report.memory_most = max(report.memory_most, self.memory())
        report.memory_end = self.memory()
        return report

    def count(self, report, name, seed):
        """Add how one prompt ended; a image of it is compared with its seed's."""
        entry = self.server.json(f"/history/{name}").get(name)
        if entry is None:
            report.cancelled += 1
        elif entry["status"]["status_str"] == "success":
            report.finished += 1
            report.unequal += not np.array_equal(self.image(name), self.references[seed])
        elif any(kind == "execution_interrupted" for kind, _ in entry["status"]["messages"]):
            report.interrupted += 1
        else:
            report.failed += 1

    def send(self, seed):
        """Queue the demo's prompt with a seed; its id."""
        self.prompt[self.sampler]["inputs"]["seed"] = seed
        return self.server.post(self.prompt)["prompt_id"]

    def post(self, path, body):
        """POST a JSON body."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.server.url + path, json.dumps(body).encode(), headers)
        urllib.request.urlopen(request, timeout=30).close()

    def drain(self):
        """Wait until nothing runs or waits; how many prompts were still there when patience ended."""
        deadline = time.monotonic() + MOST_SECONDS
        while time.monotonic() < deadline:
            queue = self.server.json("/queue")
            if not queue["queue_running"] and not queue["queue_pending"]:
                return 0
            time.sleep(POLL_SECONDS)
        return len(queue["queue_running"]) + len(queue["queue_pending"])

    def image(self, name):
        """The image of a finished prompt, (H, W, 3) whole numbers."""
        (image,) = self.server.json(f"/history/{name}")[name]["outputs"][self.saver]["images"]
        return np.asarray(self.server.view(image).convert("RGB"))

    def memory(self):
        """The server's resident memory in MB."""
        lines = Path(f"/proc/{self.server.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024.0


def rows(report):
    """The report as rows of words and figures."""
    grown = report.memory_end - report.memory_start
    return [
        ["prompts sent", f"{report.prompts}"],
        ["finished", f"{report.finished}"],
        ["interrupted while running", f"{report.interrupted}"],
        ["cancelled while waiting", f"{report.cancelled}"],
        ["failed", f"{report.failed}"],
        ["finished images that differ from their reference", f"{report.unequal}"],
        ["left in the queue", f"{report.left_in_queue}"],
        ["server's memory after the references", f"{report.memory_start:.0f} MB"],
        ["at the end", f"{report.memory_end:.0f} MB ({grown:+.1f} MB, at most {GROWTH_MB:+.0f} MB is allowed)"],
        ["most in between", f"{report.memory_most:.0f} MB"],
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=100, help="prompts after the references (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the marathon's own choices (default 0)")
    arguments = parser.parse_args()
    comfyui = find_comfyui()
    if comfyui is None:
        sys.exit("error: no ComfyUI was found; set COMFYUI_PATH to one")
    with tempfile.TemporaryDirectory() as folder:
        with ComfyServer(comfyui, Path(folder) / "base") as server:
            version = server.json("/system_stats")["system"]["comfyui_version"]
            marathon = Marathon(server, seed=arguments.seed)
            marathon.make_references()
            report = marathon.run(arguments.prompts)
    here = provenance(comfyui=version, cpu=cpu_name(), seed=arguments.seed)
    write_results(RESULTS, {"made": here, "report": asdict(report)})
    print(table(["", ""], rows(report)))
    sys.exit(0 if report.fine else 1)


if __name__ == "__main__":
    main()
