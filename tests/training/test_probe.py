"""The probe: what it prints follows from what it measured, and nothing is kept."""

import re

from training.memory import cost_of_run
from training_world import distill, make_setup, refused, write_world


def numbers(text, pattern):
    return [float(number) for number in re.findall(pattern, text)]


def test_the_probe_prints_hours_and_cost_of_the_measured_seconds_and_keeps_nothing(world, capsys):
    sets = (f"backbone.vae={world}/vae.safetensors", "train.updates=1000", "output.validate_every=500")
    assert distill(world, *sets, flags=["--probe", "--price", "3"]) == 0
    report = capsys.readouterr().out
    seconds = numbers(report, r"stage \d.*?: ([\d.e-]+) s an update")
    (validation,) = numbers(report, r"validation: ([\d.e-]+) s")
    (hours,) = numbers(report, r"validations, ([\d.e-]+) hours")
    ((spent, cost),) = re.findall(r"cost: ([\d.e-]+) device hours at 3 are ([\d.e-]+)", report)
    assert len(seconds) == 2 and "1000 updates, 3 validations" in report
    assert abs(hours - (1000 * sum(seconds) / 2 + 3 * validation) / 3600) <= 0.02 * hours
    assert abs(float(spent) - hours) <= 0.01 * hours and abs(float(cost) - 3 * hours) <= 0.01 * 3 * hours
    cost, forward, _ = cost_of_run(make_setup(world))
    (speed,) = numbers(report, r"arithmetic: ([\d.e-]+) TFLOP")
    assert abs(speed - cost.total * forward * 3 / (sum(seconds) / 2) / 1e12) <= 0.02 * speed  # of batches of 3
    assert not (world / "out").exists()


def test_bad_input_is_refused_as_in_a_run(tmp_path, capsys):
    write_world(tmp_path)
    (tmp_path / "teacher.safetensors").unlink()
    assert distill(tmp_path, flags=["--probe"]) == refused(capsys, 2, "teacher.safetensors")
