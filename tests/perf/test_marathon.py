"""A short marathon through the real server: prompts interrupted and cancelled, every finished image still right.

The long one, with the table of docs/develop/hard-use.md: PYTHONPATH=tests python -m perf.marathon
"""

from perf.marathon import GROWTH_MB, Marathon


def test_a_short_marathon(server):
    marathon = Marathon(server, seed=1)
    marathon.make_references()
    report = marathon.run(8)
    assert report.finished + report.interrupted + report.cancelled == report.prompts == 8
    assert (report.failed, report.unequal, report.left_in_queue) == (0, 0, 0)
    assert report.finished and report.memory_end - report.memory_start <= GROWTH_MB
    again = marathon.run(1)  # and after all that, one that nobody disturbs
    assert (again.finished, again.unequal) == (1, 0)
