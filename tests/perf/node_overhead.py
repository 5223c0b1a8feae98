"""Time of RMD Sampler against core nodes that make the same network calls, on tiny models of ComfyUI's classes.

    OMP_NUM_THREADS=1 PYTHONPATH=tests python -m perf.node_overhead [--pairs 20]

Needs a ComfyUI (COMFYUI_PATH, or ~/comfy/ComfyUI). The core side is one SamplerCustomAdvanced a stage with euler and
a nearest-exact LatentUpscale in between: the same number of calls, at the same sizes and sigmas, which is checked.
Both sides run in one process, one after the other, and each pair gives one ratio; the figures are the median and the
quartiles of these. With previews, both show each step as ComfyUI's latent2rgb, in JPEG as its server sends it. Times
are CPU time of the process, which says less of what else the machine does than wall time; "outside" is the part that
is not spent in the network. Results: benchmarks/results/node_overhead.json.
"""

import argparse
import importlib
import io
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass

import torch
from PIL import ImageOps

import cascade_rig
import comfy_models
import comfy_pack
from benchmarks.results import FOLDER, cpu_name, provenance, quartiles, write_results
from comfyui_checkout import find_comfyui
from demo.comparison import table

RESULTS = FOLDER / "node_overhead.json"
SEED = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """A tiny model by its name in tests/comfy_models.py, two latent sizes with the steps at each, previews or none."""

    model: str
    sizes: tuple
    split: str = "2+2"
    previews: bool = False

    @property
    def title(self):
        small, large = ("x".join(map(str, size)) for size in self.sizes)
        return f"{self.model}, {small} to {large} cells, {self.split}" + (", previews" if self.previews else "")


CASES = (
    Case(model="wan", sizes=((8, 8), (16, 16))),
    Case(model="wan", sizes=((60, 104), (90, 160)), split="3+3"),
    Case(model="sd3", sizes=((16, 16), (32, 32))),
    Case(model="sdxl", sizes=((8, 8), (16, 16))),
    Case(model="sdxl", sizes=((32, 32), (64, 64))),
    Case(model="wan", sizes=((60, 104), (90, 160)), split="3+3", previews=True),
    Case(model="sdxl", sizes=((32, 32), (64, 64)), previews=True),
)


def load_comfyui():
    """The pack's nodes in this process, on the CPU and away from the user's folders, and ComfyUI's version."""
    comfyui = find_comfyui()
    if comfyui is None:
        sys.exit("error: no ComfyUI was found; set COMFYUI_PATH to one")
    sys.path.insert(0, str(comfyui))
    options = importlib.import_module("comfy.cli_args").args
    options.cpu, options.base_directory = True, tempfile.mkdtemp()
    importlib.import_module("comfy.utils").set_progress_bar_enabled(False)
    pack = comfy_pack.import_pack()
    nodes = cascade_rig.Nodes(pack, comfy_pack.node_classes(pack))
    return nodes, importlib.import_module("comfyui_version").__version__


class Pair:
    """One case both ways: `rmd(model)` and `core(model)` sample it with a MODEL and give the samples."""

    def __init__(self, nodes, case):
        self.nodes = nodes
        self.case = case
        self.tiny = getattr(comfy_models, f"tiny_{case.model}")()
        self.plan = nodes.plan(self.tiny, sizes=case.sizes, split=case.split)
        self.positive = self.tiny.conditioning(1)
        self.sampler = nodes.classes["RMD_Sampler"]
        self.sampler.GET_SCHEMA()  # as ComfyUI does when it starts
        self.sampling = importlib.import_module("comfy_extras.nodes_custom_sampler")
        self.upscale = importlib.import_module("nodes").LatentUpscale().upscale
        self.inside = 0.0
        self.shown = 0
        method = "latent2rgb" if case.previews else "none"
        importlib.import_module("latent_preview").set_preview_method(method)
        importlib.import_module("comfy.utils").set_progress_bar_global_hook(self._show)

    def _show(self, value, total, preview, **_):
        """What ComfyUI's server does with a preview: to JPEG, no larger than asked for."""
        if preview is not None:
            _, image, largest = preview
            ImageOps.contain(image, (largest, largest)).save(io.BytesIO(), format="JPEG", quality=95)
            self.shown += 1

    def rmd(self, model):
        inputs = {"model": model, "positive": self.positive, "plan": self.plan, "seed": SEED, "cfg": 1.0}
        latent = self.tiny.latent(*self.plan.stage_plan.final_hw)
        return self.sampler.execute(latent_image=latent, **inputs).args[0]["samples"]

    def core(self, model):
        (guider,) = self.sampling.BasicGuider.execute(model, self.positive).args
        (sampler,) = self.sampling.KSamplerSelect.execute("euler").args
        latent = None
        for stage in self.plan.stage_plan.stages:
            if latent is None:
                latent = self.tiny.latent(stage.height, stage.width)
            else:
                (latent,) = self.upscale(latent, "nearest-exact", 8 * stage.width, 8 * stage.height, "disabled")
            (noise,) = self.sampling.RandomNoise.execute(SEED + stage.index).args
            sigmas = torch.tensor(self.plan.sigmas(stage), dtype=torch.float32)
            latent, _ = self.sampling.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).args
        return latent["samples"]

    def check(self):
        """Both sides make the same calls, sizes and sigmas, and show as many previews."""
        made = []
        for run in (self.rmd, self.core):
            recorder = cascade_rig.Recorder()
            self.shown = 0
            run(recorder.watch(self.tiny.patcher))
            if bool(self.shown) != self.case.previews:
                raise AssertionError(f"{self.shown} previews were shown")
            made.append([self.shown, *((tuple(call.x.shape), call.sigma) for call in recorder.calls)])
        if made[0] != made[1]:
            raise AssertionError(f"the two sides make other calls: {made}")

    def time(self, pairs):
        """{"wall", "cpu", "outside": figures} over a number of pairs, see `_figures`."""
        model = self._watched()
        spent = {"rmd": [], "core": []}
        for number in range(pairs + 2):
            for name in ("rmd", "core") if number % 2 else ("core", "rmd"):
                self.inside = 0.0
                wall, cpu = time.perf_counter(), time.process_time()
                getattr(self, name)(model)
                cpu = time.process_time() - cpu
                spent[name].append((time.perf_counter() - wall, cpu, cpu - self.inside))
        after_warmup = list(zip(spent["rmd"], spent["core"]))[2:]
        clocks = enumerate(("wall", "cpu", "outside"))
        return {clock: _figures([(rmd[i], core[i]) for rmd, core in after_warmup]) for i, clock in clocks}

    def _watched(self):
        """A MODEL that adds the CPU time of its network calls to `inside`."""

        def call(apply_model, arguments):
            began = time.process_time()
            x0 = apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
            self.inside += time.process_time() - began
            return x0

        model = self.tiny.patcher.clone()
        model.set_model_unet_function_wrapper(call)
        return model


def _figures(pairs):
    """Ratio of (rmd, core) seconds, its median and quartiles `low` and `high`, and the median milliseconds of each."""
    ratio = quartiles(rmd / core for rmd, core in pairs)
    rmd_ms, core_ms = (1000 * statistics.median(side) for side in zip(*pairs))
    return {"ratio": ratio.pop("median"), **ratio, "rmd_ms": rmd_ms, "core_ms": core_ms}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20, help="timed pairs of each case (default 20)")
    pairs = parser.parse_args().pairs
    if pairs < 2:
        parser.error(f"--pairs {pairs} gives no quartiles; take 2 or more")
    nodes, version = load_comfyui()
    rows, shown = {}, []
    for case in CASES:
        pair = Pair(nodes, case)
        pair.check()
        rows[case.title] = figures = pair.time(pairs)
        cpu, outside = figures["cpu"], figures["outside"]
        shown.append(
            [
                case.title,
                f"{cpu['rmd_ms']:.1f}",
                f"{cpu['core_ms']:.1f}",
                f"{cpu['ratio']:.3f}",
                f"{cpu['low']:.3f} to {cpu['high']:.3f}",
                f"{outside['rmd_ms']:.1f}",
                f"{outside['core_ms']:.1f}",
                f"{figures['wall']['ratio']:.3f}",
            ]
        )
    here = provenance(comfyui=version, pairs=pairs, cpu=cpu_name(), threads=torch.get_num_threads())
    write_results(RESULTS, {"made": here, "rows": rows})
    print(table(["", "RMD ms", "core ms", "ratio", "quartiles", "outside RMD", "core", "wall ratio"], shown))


if __name__ == "__main__":
    main()
