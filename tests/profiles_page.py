"""The tables of docs/use/profiles.md and quickstart.md, made from nodes/profiles/*.yaml and from the templates.

Run as a program (python tests/profiles_page.py) it writes them into the pages; no ComfyUI is needed.
"""

import importlib
import re
import sys
import types
from pathlib import Path

from browser.real_models import TEMPLATES, words_of

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "use" / "profiles.md"
HEAD = "profile,file in its folder,steps,levels,rules,work,source"
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
EMPTY = Path("no user folder")
BEGIN = "<!-- profiles begin: made by tests/profiles_page.py from nodes/profiles/*.yaml -->"
END = "<!-- profiles end -->"
QUICKSTART = ROOT / "docs" / "use" / "quickstart.md"
BLOCK = re.compile(r"(<!-- (\w+): made by tests/profiles_page.py -->\n).*?(<!-- end -->)", re.DOTALL)


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
    """What the network is shown at each level."""
    return tuple(round(profile.curve.timestep(sigma), 6) for sigma in profile.sigmas)


def models(profiles):
    """A section in Markdown for each model: its templates, and a table with one row a profile."""
    profiles, sections = list(profiles), []
    workflows = {path.stem: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("example_workflows/*.json"))}
    for family in sorted({one.family for one in profiles}, key=list(MODELS).index):
        own = [one for one in profiles if one.family == family]
        used = [name for name, text in workflows.items() if any(f'"{one.title}"' in text for one in own)]
        head = f"Templates: {', '.join(f'*{name}*' for name in used)}.\n\n" if used else ""
        rows = [f"|{HEAD.replace(',', '|')}|", "|---" * (HEAD.count(",") + 1) + "|", *map(_row, own)]
        sections.append(f"### {MODELS[family]}\n\n{head}" + "\n".join(rows))
    return "\n\n".join(sections)


def page(text, profiles):
    """The page with its tables made again."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{models(profiles)}\n\n{END}{rest.split(END)[1]}"


def _block(template):
    """What the page says of a template: its name, its steps and its files."""
    stages = ", ".join(f"{steps} at {words_of(size)}" for steps, size in zip(template.steps, template.sizes))
    rows = "\n".join(f"| [{file.name}]({file.url}) | {file.gb:.3g} | {file.folder} |" for file in template.files)
    frames = f", {template.frames} frames" if template.frames else ""
    return (
        f"\n**Template**: *{template.name}*. Steps: {stages}{frames}.\n\n"
        f"| file | GB | folder in `ComfyUI/models` |\n|---|---:|---|\n{rows}\n\n"
    )


def quickstart(text):
    """The page of quickstarts with the block of every template that it names made again."""
    return BLOCK.sub(lambda found: found[1] + _block(TEMPLATES[found[2]]) + found[3], text)


def _row(one):
    shares = one.sizes or (0.5, 1.0)
    work = sum(count * share**2 for count, share in zip(one.split, shares, strict=True)) / sum(one.split)
    strength = "" if one.lora_strength in (None, 1.0) else f", strength {one.lora_strength:g}"
    sizes = f" at {', '.join(f'{size:g}' for size in one.sizes)}" if one.sizes else ""
    noise = "fresh" if one.boundary.switch_noise == "fresh" else "Euler"
    cells = (
        f"{one.title}{strength}",
        ", ".join(f"`{name}`" for name in one.files),
        "+".join(map(str, one.split)) + sizes,
        _levels(one),
        f"{one.mapping}, {noise}" + ("" if one.cfg == 1 else f", CFG {one.cfg:g}"),
        f"{work:.0%}",
        _link(one.sources),
    )
    return f"|{'|'.join(cells)}|"


def _levels(one):
    shown = (
        [f"{step:.0f}" for step in timesteps(one)] if one.shift is None else [f"{sigma:.4g}" for sigma in one.sigmas]
    )
    return ", ".join(shown) + (" (at 1024 px)" if one.levels else "")


def _link(sources):
    """The model's own page where a source is one, a package last."""
    urls = [source.split(" - ", 1)[0] for source in sources]
    url = min(urls, key=lambda url: ("//huggingface.co/" not in url or "/docs/" in url, "//pypi.org/" in url))
    return f"[{'/'.join(url.removeprefix('https://').split('/')[1:3])}]({url})"


def main():
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), shipped().values()), encoding="utf-8")
    QUICKSTART.write_text(quickstart(QUICKSTART.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
