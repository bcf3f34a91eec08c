"""How fast is the linear sum assignment? Ours against scipy in a loop and against the other in-graph solvers.

    python benchmarks/assignment.py [--repetitions 25] [--problems 16,96,384]

Every solver gets the same costs, `(problems, targets, 100 queries)`, as tensors of its own framework, and returns the
query of each target to the host. Compilation is not timed. All run in turn, once per round, short ones right after an
untimed run, so that none profits from its predecessor. A cell is the median time in milliseconds, in brackets its ratio
to ours under XLA, and then the number of runs where they are fewer. Total costs are compared with scipy's; a solver
whose total is higher is marked with the number of problems it got wrong.

Two of the others want squares, that is, invented targets. Their time depends on the cost of these: in the main table
it lies below all real costs, which makes them fastest; the second table shows the padding of their own projects.

The other solvers are downloaded on the first run into `benchmarks/.peers`, where only their own process looks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from harness.loads import LOADS, QUERIES, draw_costs
from harness.report import print_bar, print_header, print_row, print_table, rounded
from harness.solvers import (
    CONTENDERS,
    GARDEN,
    GARDEN_XLA,
    KERASHUB,
    OURS,
    PEERS,
    SCIPY,
    WITH_OWN_PADDING,
    missing,
    search_path,
    solver,
)
from harness.workers import Worker, serve, take_turns

BAR_PROBLEMS = 96  # batch 16, 6 decoder layers
SHORT = 0.1  # seconds; longer runs do not notice what ran before them
WRONG_FROM = 1e-5  # of the sum of the costs' magnitudes; float32 sums differ by less


def work(process: str) -> None:
    """What a worker process does: prepares a solver for a load, then times single runs of it."""
    sys.path += search_path(process)
    prepared: dict[str, Callable[[], Any]] = {}

    def prepare(contender: str, load: str, problems: int) -> list[list[int]]:
        prepared[contender], queries = solver(contender, *draw_costs(load, problems))
        return queries(prepared[contender]()).tolist()

    def timed(contender: str) -> float:
        start = time.perf_counter()
        prepared[contender]()
        return time.perf_counter() - start

    def once(contender: str) -> float:
        seconds = timed(contender)
        return timed(contender) if seconds < SHORT else seconds

    serve(prepare=prepare, once=once)


def _number_wrong(cost: np.ndarray, counts: np.ndarray, queries: list[list[int]], best: list[list[int]]) -> int:
    """In how many problems the pairs cost more than scipy's or are no assignment."""
    wrong = 0
    for matrix, count, row, optimum in zip(cost.astype(np.float64), counts, queries, best, strict=True):
        found, targets = np.array(row[:count], int), np.arange(count)
        excess = matrix[targets, found].sum() - matrix[targets, optimum[:count]].sum()
        is_assignment = len(set(found)) == count and (found >= 0).all()
        wrong += not is_assignment or excess > WRONG_FROM * np.abs(matrix[targets, optimum[:count]]).sum()
    return wrong


def measure(
    workers: dict[str, Worker | str], load: str, problems: int, repetitions: int
) -> tuple[dict[str, float], list[str]]:
    """Medians in seconds by contender for one load, and the cells of its row."""
    running = {name: worker for name, worker in workers.items() if isinstance(worker, Worker)}
    queries = {name: worker.ask("prepare", name, load, problems) for name, worker in running.items()}
    seconds = take_turns({name: partial(worker.ask, "once", name) for name, worker in running.items()}, repetitions)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    cost, counts = draw_costs(load, problems)

    def cell(name: str) -> str:
        if name not in medians:
            return str(workers[name])
        text = f"{rounded(1e3 * medians[name])} ({rounded(medians[name] / medians[OURS])}×)"
        if len(seconds[name]) < repetitions:
            text += f" n={len(seconds[name])}"
        wrong = _number_wrong(cost, counts, queries[name], queries[SCIPY])
        return text + (f" wrong in {wrong}" if wrong else "")

    return medians, [load, str(problems), *map(cell, workers)]


def print_bars(medians: dict[tuple[str, int], dict[str, float]]) -> None:
    """Prints the bars, and where ours is slower."""

    def ratio(load: str, slower: str, faster: str) -> float | None:
        row = medians.get((load, BAR_PROBLEMS), {})
        return row[slower] / row[faster] if slower in row and faster in row else None

    print(f"\nBars, for {BAR_PROBLEMS} problems where not said otherwise:\n")
    for name, bar in {GARDEN: 60, GARDEN_XLA: 30, KERASHUB: 50}.items():
        print_bar(f"COCO-like: time of {name} / {OURS}", ratio("COCO-like", name, OURS), at_least=bar)
    for load in ("COCO-like", "late training"):
        print_bar(f"{load}: time of {OURS} / {SCIPY}", ratio(load, OURS, SCIPY), at_most=3)
    against_scipy = {key: row[OURS] / row[SCIPY] for key, row in medians.items()}
    load, problems = worst = max(against_scipy, key=against_scipy.get)
    claim = f"worst load ({load}, {problems} problems): time of {OURS} / {SCIPY}"
    print_bar(claim, against_scipy[worst], at_most=6)

    print("\nWhere ours under XLA is slower:\n")
    for name in CONTENDERS:
        ratios = [row[OURS] / row[name] for row in medians.values() if name in row and row[name] < row[OURS]]
        if ratios:
            extent = f"{rounded(min(ratios))} to {rounded(max(ratios))} times"
            print(f"- than {name}: in {len(ratios)} of {len(medians)} rows, by {extent}")


def main() -> None:
    """Measures all loads and prints the table and the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=25)
    parser.add_argument("--problems", default="16,96,384")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return

    processes: dict[tuple[str, str], Worker | str] = {}
    for process, backend in CONTENDERS.values():
        if (process, backend) not in processes:
            processes[process, backend] = missing(process, backend) or Worker(process, KERAS_BACKEND=backend)
    workers = {name: processes[place] for name, place in CONTENDERS.items()}

    packages = ("tfdetr-keras", "tensorflow", "keras", "jax", "scipy", "numpy")
    print_header("Linear sum assignment, ms per batch of problems", packages)
    peers = ", ".join(requirement.replace("==", " ") for peer in PEERS.values() for requirement in peer)
    print(f"{QUERIES} queries; n={arguments.repetitions} where not said otherwise; peers: {peers}.\n")
    print_table(["load", "problems", *workers])
    medians = {}
    for load in LOADS:
        for problems in map(int, arguments.problems.split(",")):
            medians[load, problems], cells = measure(workers, load, problems, arguments.repetitions)
            print_row(cells)
    own = {OURS: workers[OURS], SCIPY: workers[SCIPY]} | {n: processes[place] for n, place in WITH_OWN_PADDING.items()}
    print()
    print_table(["load", "problems", *own], [measure(own, "COCO-like", BAR_PROBLEMS, arguments.repetitions)[1]])
    print_bars(medians)
    for worker in processes.values():
        if isinstance(worker, Worker):
            worker.close()


if __name__ == "__main__":
    main()
