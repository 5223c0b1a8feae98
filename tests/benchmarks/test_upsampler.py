"""The benchmark of the learned upsampler: its rows are those of benchmarks.quality but for the upsampler."""

import torch

from benchmarks import upsampler
from benchmarks.quality import rows
from benchmarks.quality.students import BOTH, FULL, OPTION_COST, weights_key
from rmd_core.boundary import learned_name
from rmd_core.upsampler import LatentUpsampler


def test_rows_differ_from_those_with_nearest_by_the_upsampler_alone(tmp_path, monkeypatch):
    path = LatentUpsampler(channels=16, width=4, blocks=1, latents="wan").save(tmp_path / "up.safetensors")
    monkeypatch.setattr(upsampler, "train", lambda: path)
    upsampler.learned.cache_clear()
    network, _ = upsampler.learned()
    no_gap, untouched, rmd = upsampler.learned_rows(1)
    upsampler.learned.cache_clear()
    nearest = {row.name: row for row in rows.untouched_rows(FULL, 1)}["full_untouched_2+2_area_seed_1"]
    nothing = {row.name: row for row in rows.untouched_rows(BOTH, 1)}["both_untouched_2+2_none_seed_1"]
    trained = rows.student_row(FULL.rmd_area, 1, OPTION_COST)
    named = learned_name("up.safetensors", network.digest())
    for row, other in ((no_gap, nothing), (untouched, nearest), (rmd, trained)):
        assert row.plan == other.plan and row.eta == other.eta and row.boundary.upsampler == named
        assert row.boundary.learned(torch.zeros(1, 16, 1, 2, 2), (3, 4)).shape == (1, 16, 1, 3, 4)
    assert untouched.network == nearest.network and no_gap.network == nothing.network
    student, base = rmd.network.student, trained.network.student
    configs = [one.config(1).model_dump(exclude={"output"}) for one in (student, base)]
    methods = [config.pop("method") for config in configs]
    changed = {key for key in methods[0] if methods[0][key] != methods[1][key]}
    assert changed == {"upsampler", "upsampler_sha256"}
    configs[0]["train"]["updates"] = configs[1]["train"]["updates"]
    assert configs[0] == configs[1] and weights_key(student, 1) != weights_key(base, 1)


def test_the_tables_show_what_was_kept(capsys):
    assert upsampler.main(["--table"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{title}, {way}" in shown for title in upsampler.TITLES.values() for way in upsampler.WAYS)
