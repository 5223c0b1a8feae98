"""A run in one image: read from metrics.jsonl, split by stage, averaged, one panel each, and its validation images."""

import json
from statistics import mean

import pytest
from PIL import Image

from rmd_core.errors import RMDError
from training.plot_run import PANELS, SHOWN, deviations, draw, grids, lines_of, main, read_entries, running_mean

PANEL = {panel.figure: panel for panel in PANELS}


def write_run(folder, updates, images=0, shown="images"):
    (folder / shown).mkdir(parents=True)
    lines = [{"update": n, "loss_fake": 1 / n, "x0_std": float(n), "stage": 1 + n % 2} for n in range(1, updates + 1)]
    lines = [line | {"seconds": 2.0, "seconds_fake": 0.5, "norm_fake": 3.0, "norm_student": 1.0} for line in lines]
    lines[-1] |= {"picture_saturation": 0.25, "skipped": 1}
    lines[-2]["skipped"] = 2
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number in range(images):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / shown / f"step_{number * 10:06d}.png")
    return folder


def test_a_running_mean_is_the_mean_of_what_came_before():
    assert running_mean([2.0, 4.0, 6.0, 8.0], window=2) == [2.0, 3.0, 5.0, 7.0]
    assert running_mean([3.0], window=20) == [3.0]


def test_each_panel_reads_its_own_figures(tmp_path):
    entries = read_entries(write_run(tmp_path / "run", 6))
    stages = lines_of(entries, PANEL["loss_fake"])
    assert stages == {"stage 1": ((2, 4, 6), (1 / 2, 1 / 4, 1 / 6)), "stage 2": ((1, 3, 5), (1.0, 1 / 3, 1 / 5))}
    assert set(lines_of(entries, PANEL["norm_"])) == {"fake", "student"}
    assert set(lines_of(entries, PANEL["seconds"])) == {"update", "fake"}
    assert lines_of(entries, PANEL["skipped"]) == {"": ((5, 6), (2, 3))}
    assert lines_of(entries, PANEL["picture_saturation"]) == {"": ((6,), (0.25,))}
    assert lines_of(entries, PANEL["peak_gib"]) == {}
    rates = [{"update": n, "lr_fake": 0.1} for n in (1, 2)]
    assert lines_of(rates, PANEL["lr_"]) == {}
    assert lines_of([*rates, {"update": 3, "lr_fake": 0.2}], PANEL["lr_"]) == {"fake": ((1, 2, 3), (0.1, 0.1, 0.2))}
    # An update that mixes stages has its own figure for each of them.
    mixed = [{"update": 1, "loss_fake": 2.0, "loss_fake_stage_1": 1.0, "loss_fake_stage_2": 3.0}]
    assert lines_of(mixed, PANEL["loss_fake"]) == {"stage 1": ((1,), (1.0,)), "stage 2": ((1,), (3.0,))}
    assert lines_of([{"update": 1, "loss_fake": 2.0}], PANEL["loss_fake"]) == {"all stages": ((1,), (2.0,))}


def test_runs_share_the_panels_and_keep_their_images(tmp_path):
    folders = [write_run(tmp_path / name, 40, images) for name, images in (("one", 12), ("two", 2))]
    shown = {folder.name: grids(folder) for folder in folders}
    assert [update for update, _ in shown["one"]] == [0, 30, 60, 80, 110] and len(shown["one"]) == SHOWN
    figure = draw({folder.name: read_entries(folder) for folder in folders}, shown)
    axes = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    means = [line for line in axes["loss of the fake score"].lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in means] == [f"{run}, stage {n}" for run in ("one", "two") for n in (1, 2)]
    assert means[0].get_ydata()[1] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert "most memory in use (GiB)" not in axes
    assert {"one, update 110", "two, update 0", "two, update 10"} <= set(axes)


def test_a_run_of_an_older_version_has_its_images_in_another_folder(tmp_path):
    assert [update for update, _ in grids(write_run(tmp_path / "run", 2, 2, shown="pictures"))] == [0, 10]


def test_the_deviation_of_each_stage_at_its_two_ends(tmp_path):
    found = deviations(read_entries(write_run(tmp_path / "run", 40)))
    even, odd = range(2, 41, 2), range(1, 41, 2)
    assert found == {"stage 1": (mean(even[:10]), mean(even[10:])), "stage 2": (mean(odd[:10]), mean(odd[10:]))}


def test_the_command_writes_an_image_or_says_what_is_missing(tmp_path, capsys):
    run, image = write_run(tmp_path / "run", 30, 3), tmp_path / "curves.png"
    assert main([str(run), "--out", str(image)]) == 0 and image.stat().st_size > 5000
    assert "run: deviation of the clean latents, stage 1: " in capsys.readouterr().out
    assert main([str(run)]) == 0 and (run / "curves.png").stat().st_size == image.stat().st_size
    assert main([str(tmp_path), "--out", str(image)]) == 2
    assert "name the output folder of a run" in capsys.readouterr().err
    assert main([str(run), "--out", str(tmp_path / "curves.xyz")]) == 2
    (run / "metrics.jsonl").write_text('{"update": 1}\n[1]\n')
    with pytest.raises(RMDError, match="damaged"):
        read_entries(run)
