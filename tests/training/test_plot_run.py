"""Curves of runs: read from metrics.jsonl, averaged, one panel each."""

import json
from statistics import mean

import pytest

from rmd_core.errors import RMDError
from training.plot_run import PANELS, deviations, draw, main, read_run, running_mean


def write_run(folder, updates):
    folder.mkdir()
    lines = [{"update": n, "loss_fake": 1 / n, "x0_std": float(n), "stage": 1 + n % 2} for n in range(1, updates + 1)]
    lines[-1]["picture_saturation"] = 0.25
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_running_mean_is_the_mean_of_what_came_before():
    assert running_mean([2.0, 4.0, 6.0, 8.0], window=2) == [2.0, 3.0, 5.0, 7.0]
    assert running_mean([3.0], window=20) == [3.0]


def test_every_run_has_its_line_in_the_panels_it_has_figures_for(tmp_path):
    runs = {name: read_run(write_run(tmp_path / name, updates)) for name, updates in (("one", 40), ("two", 25))}
    assert runs["one"]["picture_saturation"] == ((40,), (0.25,)) and "x0_saturation" not in runs["one"]
    axes = dict(zip((name for name, _ in PANELS), draw(runs).axes))
    (long, short) = axes["loss_fake"].lines
    assert len(long.get_xdata()) == 40 and short.get_ydata()[1] == pytest.approx((1 + 1 / 2) / 2)
    assert not axes["loss_student"].lines and len(axes["picture_saturation"].lines) == 2


def test_the_deviation_of_each_stage_at_its_two_ends(tmp_path):
    found = deviations(write_run(tmp_path / "run", 40))
    even, odd = range(2, 41, 2), range(1, 41, 2)
    assert found == {1: (mean(even[:10]), mean(even[10:])), 2: (mean(odd[:10]), mean(odd[10:]))}


def test_the_command_writes_a_picture_or_says_what_is_missing(tmp_path, capsys):
    run, picture = write_run(tmp_path / "run", 30), tmp_path / "curves.png"
    assert main([str(run), "--out", str(picture)]) == 0 and picture.stat().st_size > 5000
    assert "run: deviation of the clean latents, stage 1: " in capsys.readouterr().out
    assert main([str(tmp_path), "--out", str(picture)]) == 2
    assert "name the output folder of a run" in capsys.readouterr().err
    assert main([str(run), "--out", str(tmp_path / "curves.xyz")]) == 2
    (run / "metrics.jsonl").write_text('{"update": 1}\n[1]\n')
    with pytest.raises(RMDError, match="damaged"):
        read_run(run)
