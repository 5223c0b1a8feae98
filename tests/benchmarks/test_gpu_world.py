"""The larger world, tiny: every part is made, kept, and not made again by the same command."""

import json

from benchmarks.gpu_world import main


def test_the_tiny_form_runs_to_its_scores_and_goes_on_where_it_was_cut_off(tmp_path):
    command = ["--tiny", "--minutes", "0.02", "--out", str(tmp_path)]
    assert main(command) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert rows["few-step model"]["cost"] == 4.0 and rows["RMD, area mapping"]["cost"] == 2.5
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    cut_off = tmp_path / "students" / "none"
    (cut_off / "student.safetensors").unlink()
    assert main(command) == 0
    again = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert made.keys() == again.keys()
    assert {path for path in made if made[path] != again[path]} == {cut_off / "student.safetensors"}
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows
