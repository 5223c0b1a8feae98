"""The tables and the sources of docs/use/profiles.md. They are made from nodes/profiles/*.yaml; no ComfyUI is needed.

Run as a program (python tests/profiles_page.py) it writes them into the page.
"""

import importlib
import sys
import types
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "use" / "profiles.md"
HEAD = (
    "key,file(s),folder,steps,timesteps (beta table) or sigmas,shift,CFG,LoRA strength,split,mapping,eta,at the switch"
)
STUDENTS_HEAD = "key,base,file,steps,timesteps (beta table) or sigmas,sizes over the final one,CFG"
MODELS_HEAD = "your model,profile in RMD Schedule,load it with,template,work,what to expect"
MODELS = {  # ComfyUI's class of the model: its name for people
    "SD3": "SD3 and SD3.5",
    "Flux": "FLUX.1",
    "SDXL": "SDXL",
    "PixArt": "PixArt-alpha",
    "WAN21": "Wan2.1 and Wan2.2 A14B",
    "WAN22": "Wan2.2 5B",
    "Flux2": "FLUX.2",
    "Lumina2": "Z-Image",
    "QwenImage": "Qwen-Image",
    "Krea2": "Krea 2",
    "Anima": "Anima",
    "HunyuanVideo15": "HunyuanVideo 1.5",
    "LTXAV": "LTX-2 and LTX-2.3",
    "MiniMaxH3": "MiniMax H3",
}
LOADERS = {
    "checkpoints": "Load Checkpoint",
    "diffusion_models": "Load Diffusion Model",
    "loras": "LoraLoaderModelOnly",
}
EMPTY = Path("no user folder")
MADE = "<!-- {} {}: made by tests/profiles_page.py from nodes/profiles/*.yaml -->"


def profiles_module():
    """`nodes.profiles` of this checkout, under a package that is the root but does not run ComfyUI's entry point."""
    package = types.ModuleType("rmd_checkout")
    package.__path__ = [str(ROOT)]
    sys.modules.setdefault(package.__name__, package)
    return importlib.import_module("rmd_checkout.nodes.profiles")


def shipped():
    """Every shipped profile by its key."""
    return {one.key: one for one in profiles_module().load_profiles(EMPTY).values()}


def timesteps(profile):
    """What the network is told at each level."""
    return tuple(round(profile.curve.timestep(sigma), 6) for sigma in profile.sigmas)


def table(profiles):
    """The table in Markdown of models that were not distilled for a cascade, one row a profile."""
    return _table(HEAD, [_cells(one) for one in profiles if not one.sizes])


def students(profiles):
    """The table in Markdown of those that were."""
    return _table(STUDENTS_HEAD, [_student_cells(one) for one in profiles if one.sizes])


def models(profiles):
    """The table in Markdown of what to use for a model, one row a profile, those of one model together."""
    order = list(MODELS)
    used = {path.stem: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("workflows/*.json"))}
    rows = [_model_cells(one, used) for one in sorted(profiles, key=lambda one: order.index(one.family))]
    return _table(MODELS_HEAD, rows)


def sources(profiles):
    """Sources and notes as a list in Markdown; profiles with the same sources share one entry."""
    groups = {}
    for one in profiles:
        groups.setdefault(one.sources, []).append(one)
    lines = []
    for urls, group in groups.items():
        lines.append(f"- {', '.join(f'`{one.key}`' for one in group)}")
        lines += [f"  - {_link(source)}" for source in urls]
        lines += [f"  - Note: {note}" for note in dict.fromkeys(note for one in group for note in one.notes)]
    return "\n".join(lines)


def page(text, profiles):
    """The page with all parts made again."""
    profiles = list(profiles)
    for name, part in (
        ("models", models(profiles)),
        ("students", students(profiles)),
        ("table", table(profiles)),
        ("sources", sources(profiles)),
    ):
        begin, end = MADE.format(name, "begins"), MADE.format(name, "ends")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{part}\n\n{end}{rest.split(end)[1]}"
    return text


def _row(cells):
    return f"| {' | '.join(cells)} |"


def _table(head, rows):
    return "\n".join([_row(head.split(",")), "|" + "---|" * (head.count(",") + 1), *map(_row, rows)])


def _levels(one):
    told = [f"{step:.0f}" for step in timesteps(one)] if one.shift is None else [f"{sigma:.4g}" for sigma in one.sigmas]
    return ", ".join(told) + (" (at 1024 x 1024)" if one.levels else "")


def _model_cells(one, workflows):
    shares = one.sizes or (0.5, 1.0)
    work = sum(count * share**2 for count, share in zip(one.split, shares, strict=True)) / sum(one.split)
    load = "RMD Load Student" if one.sizes else LOADERS[one.folder]
    expect = "sampled as it was distilled" if one.sizes else "not distilled for two sizes: faster, not better"
    return [
        MODELS[one.family],
        one.title,
        load + (", two models" if one.second_model_sigma is not None else ""),
        ", ".join(name for name, text in workflows.items() if f'"{one.title}"' in text) or "-",
        f"{work:.0%}",
        expect,
    ]


def _student_cells(one):
    return [
        f"`{one.key}`",
        f"`{one.base}`",
        f"`{one.files[0]}`",
        str(len(one.sigmas)),
        _levels(one),
        ", ".join(f"{size:g}" for size in one.sizes),
        f"{one.cfg:g}",
    ]


def _cells(one):
    return [
        f"`{one.key}`",
        ", ".join(f"`{name}`" for name in one.files),
        one.folder,
        str(len(one.sigmas)),
        _levels(one),
        "-" if one.shift is None else f"{one.shift:g}",
        f"{one.cfg:g}",
        "-" if one.lora_strength is None else f"{one.lora_strength:g}",
        "+".join(map(str, one.split)),
        one.mapping,
        f"{one.eta:g}",
        "fresh" if one.boundary.switch_noise == "fresh" else f"exact {one.boundary.eta_switch:g}",
    ]


def _link(source):
    url, says = source.split(" - ", 1)
    return f"[{'/'.join(url.removeprefix('https://').split('/')[:3])}]({url}): {says}"


def main():
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), shipped().values()), encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
