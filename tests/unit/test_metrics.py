"""Numbers of several processes: right sums, and the format that Prometheus reads."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from app import metrics
from app.metrics import PLACE, Metrics, exposition

ROOT = Path(__file__).parents[2]
COUNTING = """
import sys
from app import metrics
numbers = metrics.Metrics(int(sys.argv[1]), 3, int(sys.argv[2]))
for _ in range(1000):
    numbers.add(metrics.RUNS, "echo", "completed")
    numbers.observe(metrics.FIRST_BYTE, 0.2, "GET", "/x")
numbers.set(metrics.LIVE, 2)
"""


def test_processes_are_added_up_and_one_that_follows_another_goes_on_counting() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(3 * PLACE)
        for slots in ((0, 1, 2), (1,)):  # the one in the middle dies and is started again
            command = [sys.executable, "-c", COUNTING, str(file.fileno())]
            running = [subprocess.Popen([*command, str(slot)], cwd=ROOT, pass_fds=[file.fileno()]) for slot in slots]
            assert [process.wait(60) for process in running] == [0] * len(slots)
        text = exposition(Metrics(file.fileno(), 3, 0).total())
    assert 'chattable_runs_total{agent="echo",status="completed"} 4000\n' in text
    assert 'chattable_http_first_byte_seconds_count{method="GET",route="/x"} 4000\n' in text
    assert "chattable_live_runs 4\n" in text  # the gauge of slot 0 was reset by the one who reads


def test_the_buckets_of_a_histogram_hold_all_that_was_quicker() -> None:
    numbers = Metrics()
    for seconds in (0.001, 0.005, 0.3, 1000.0):
        numbers.observe(metrics.RUN_SECONDS, seconds, "echo")
    text = exposition(numbers.total())
    buckets = dict(re.findall(r'_bucket\{agent="echo",le="(.*?)"\} (\d+)', text))
    assert (buckets["0.005"], buckets["0.25"], buckets["0.5"], buckets["120.0"], buckets["+Inf"]) == tuple("22334")
    assert 'chattable_run_seconds_sum{agent="echo"} 1000.306\n' in text


def test_values_of_labels_cannot_break_the_format() -> None:
    numbers = Metrics()
    numbers.add(metrics.COST, 'a"b\\c\nd', amount=0.25)
    lines = exposition(numbers.total()).splitlines()
    assert r'chattable_llm_cost_total{model="a\"b\\c\nd"} 0.25' in lines
    assert all(re.fullmatch(r"# (HELP|TYPE) \w+ .+|\w+(\{.*\})? [\d.e+-]+", line) for line in lines)


def test_what_finds_no_room_is_counted() -> None:
    numbers = Metrics()
    for number in range(metrics.CELLS + 10):
        numbers.add(metrics.COST, str(number))
    assert f"chattable_metrics_dropped_total {11}\n" in exposition(numbers.total())
