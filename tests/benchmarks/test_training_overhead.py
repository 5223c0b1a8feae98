"""The trainer's own time around network calls: the page shows what is stored, and the measurement counts every call."""

from benchmarks import training_overhead
from benchmarks.results import read_results, stored_block
from benchmarks.training_overhead import MARK, PAGE, RESULTS, block, measure
from benchmarks.training_runs import TINY


def test_the_page_shows_what_is_stored():
    assert stored_block(PAGE, MARK) == block(read_results(RESULTS))


def test_an_update_is_measured_on_a_tiny_network(monkeypatch):
    monkeypatch.setattr(training_overhead, "UPDATES", 3)
    found = measure(TINY[0])
    # One student call for the estimate, one of the fake score for each loss, one of the guided teacher; trajectories.
    assert found["calls"] >= 4 and 0 < found["call_ms"] < found["update_ms"]
