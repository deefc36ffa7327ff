"""What bounds the dense CRF of many images on two threads: the same images in two processes that share nothing.

    python benchmarks/scaling_dense_crf.py [--rounds 21]

Eight images of 375 x 500 on one thread, on two threads, and on one thread in each of two processes with four images.
Where the processes gain no more than the threads, the machine's memory and clock bound both. Rounds are interleaved; a
ratio is the median of paired rounds.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from problems import VOC, label_map, photo

from amn_fast import dense_crf, unary_from_labels


def solver(count: int, numbers: Sequence[int]) -> Callable[[int], object]:
    """A function of the number of threads that runs the CRF of these images."""
    images = [photo(*VOC, shift=31 * i) for i in numbers]
    unaries = [unary_from_labels(label_map(count, *VOC, i), count, 0.7, zero_unsure=False) for i in numbers]
    return lambda threads: dense_crf(images, unaries, threads=threads)


def work(connection: Connection, count: int, numbers: Sequence[int]) -> None:
    """Run the CRF each time that a message comes; None ends the process."""
    solve = solver(count, numbers)
    while connection.recv() is not None:
        solve(1)
        connection.send(True)


def timed(run: Callable[[], object]) -> float:
    time.sleep(0.02)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def race(count: int, rounds: int) -> None:
    context, ends = multiprocessing.get_context("spawn"), []
    for numbers in (range(4), range(4, 8)):
        end, other = context.Pipe()
        context.Process(target=work, args=(other, count, numbers), daemon=True).start()
        ends.append(end)
    solve = solver(count, range(8))

    def processes() -> None:
        for end in ends:
            end.send(True)
        for end in ends:
            end.recv()

    methods = {"one thread": lambda: solve(1), "two threads": lambda: solve(2), "two processes": processes}
    for run in methods.values():
        run()
    times = [[timed(run) for run in methods.values()] for _ in range(rounds)]
    for place, name in enumerate(methods):
        ratio = statistics.median(row[0] / row[place] for row in times)
        median = 1e3 * statistics.median(row[place] for row in times)
        print(f"{count} labels, {name}: {median:.0f} ms, {ratio:.2f} times one thread")
    for end in ends:
        end.send(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    for count in (2, 21):
        race(count, options.rounds)


if __name__ == "__main__":
    main()
