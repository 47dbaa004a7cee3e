"""The process beside the search: what it answers, and what happens when it is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from oracle import small_instance

from autoshard.costmodels.legality import UNRESTRICTED
from autoshard.search import confirming, dealing
from autoshard.search.confirming import Confirmations
from autoshard.search.rows import price_rows
from autoshard.search.space import expand, meshes
from autoshard.search.stages import Leaf, Stage
from autoshard.search.worker import Worker, WorkerLostError, shared_worker


def some_answer() -> tuple[Stage, Leaf]:
    instance = small_instance(0)
    candidates, _ = expand(instance.problem, meshes(instance.problem))
    rows = price_rows(instance.problem, instance.profile, candidates)
    row = int(np.argmax(rows.candidates.pp))
    schedule = (
        rows.candidates.pp[row],
        rows.candidates.vpp[row],
        rows.candidates.microbatches[row],
    )
    held = instance.profile.pipeline.in_flight(*map(int, schedule))
    stage = Stage.of(rows, row, held)
    leaf = dealing.fastest(stage, float("inf"))
    assert leaf is not None
    return stage, leaf


def test_a_worker_answers_calls_and_passes_on_what_they_raise() -> None:
    worker = shared_worker()
    assert worker.call(max, 2, 3) == 3
    with pytest.raises(ValueError, match="invalid literal"):
        worker.call(int, "three")
    assert worker.call(print, "what a library prints is no answer") is None
    assert worker.call(os.getpid) != os.getpid()
    assert shared_worker() is worker


def test_searches_of_many_threads_each_get_their_own_answer() -> None:
    worker = shared_worker()
    with ThreadPoolExecutor(max_workers=8) as pool:
        # Longer than a pipe holds: a call that is written in parts could be cut in two.
        answers = list(pool.map(worker.call, [len] * 200, [b"0" * (i * 1000) for i in range(200)]))
    assert answers == [i * 1000 for i in range(200)]
    assert shared_worker() is worker


def test_ctrl_c_at_the_terminal_is_the_business_of_the_search_alone() -> None:
    worker = shared_worker()
    os.kill(worker.call(os.getpid), signal.SIGINT)
    assert worker.call(max, 2, 3) == 3


def test_a_lost_worker_is_replaced() -> None:
    lost = shared_worker()
    with pytest.raises(WorkerLostError):
        lost.call(os._exit, 1)
    with pytest.raises(WorkerLostError):
        lost.call(max, 2, 3)
    assert shared_worker() is not lost
    assert shared_worker().call(max, 2, 3) == 3


def test_a_killed_worker_costs_no_answer() -> None:
    stage, leaf = some_answer()
    confirmations = Confirmations(UNRESTRICTED, float("inf"))
    try:
        confirmations.ask(stage, leaf)
        assert confirmations.settle() == 1
        os.kill(shared_worker().call(os.getpid), signal.SIGKILL)
        confirmations.ask(stage, leaf)
        assert confirmations.settle() == 2
    finally:
        confirmations.close()


def test_where_no_process_can_be_started_the_solver_works_in_this_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none() -> Worker:
        raise WorkerLostError("no processes here")

    monkeypatch.setattr(confirming, "shared_worker", none)
    stage, leaf = some_answer()
    confirmations = Confirmations(UNRESTRICTED, float("inf"))
    try:
        confirmations.ask(stage, leaf)
        assert confirmations.settle() == 1
    finally:
        confirmations.close()


def test_a_wrong_answer_is_found_out_there_and_raised_here() -> None:
    stage, leaf = some_answer()
    wrong = Leaf(rungs=leaf.rungs, time_s=leaf.time_s * 1.5, memory_bytes=leaf.memory_bytes)
    confirmations = Confirmations(UNRESTRICTED, float("inf"))
    try:
        confirmations.ask(stage, wrong)
        with pytest.raises(AssertionError, match="disagree"):
            confirmations.settle()
    finally:
        confirmations.close()


SCRIPT = """
import autoshard
front = autoshard.solve("llama3-8b", chips=64, points=2)  # no `if __name__ == "__main__"` here
from autoshard.search.worker import shared_worker
import os
print(shared_worker().call(os.getpid))
"""


def test_a_script_without_a_guard_runs_once_and_leaves_no_process() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


KILLED = """
import time
from autoshard.search.worker import shared_worker
print(shared_worker().call(__import__("os").getpid), flush=True)
shared_worker().call(time.sleep, 60)
"""


def test_a_worker_ends_with_a_search_that_is_killed_though_it_is_at_work() -> None:
    parent = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    latest = time.monotonic() + 20
    while _runs(worker):
        assert time.monotonic() < latest, "the worker outlives the search"
        time.sleep(0.05)


def _runs(process: int) -> bool:
    """Whether a process is there and has not ended, as one that nobody waited for has."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state[0] != "Z"
