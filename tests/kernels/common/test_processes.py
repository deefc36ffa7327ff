"""Threads that the system refuses, forks, signals and the interpreter's end while a kernel runs."""

import os
import shutil
import subprocess
import sys

import pytest

from amn_fast._native import native

pytestmark = pytest.mark.skipif(native is None or sys.platform != "linux", reason="the C++ kernels on Linux")

SETUP = """
import ctypes, os, signal, sys, threading, time
import numpy as np
from amn_fast.ops.dense_crf import DenseCRF, dense_crf
random = np.random.default_rng(0)
image = random.integers(0, 256, (200, 200, 3), np.uint8)  # several bands
unary = random.random((3, 200, 200), dtype=np.float32)
"""


def run(code, timeout=120, **environment):
    command = [sys.executable, "-c", SETUP + code]
    return subprocess.run(
        command, env=os.environ | environment, timeout=timeout, capture_output=True, text=True, check=False
    )


def test_a_refused_thread_leaves_the_answer_as_it_is(tmp_path):
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    source = tmp_path / "refuse.c"
    source.write_text("""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
static int nth = -1;
void refuse(int n) { nth = n; }
int pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *x) {
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (!real) real = dlsym(RTLD_NEXT, "pthread_create");
    if (nth >= 0 && nth-- == 0) return EAGAIN;
    return real(t, a, f, x);
}
""")
    library = tmp_path / "refuse.so"
    subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"], check=True)
    code = """
expected = dense_crf(image, unary, threads=4, iterations=2)
for n in range(20):
    ctypes.CDLL(None).refuse(n)
    assert np.array_equal(dense_crf(image, unary, threads=4, iterations=2), expected)
print("same")
"""
    assert run(code, LD_PRELOAD=str(library)).stdout == "same\n"


def test_children_forked_while_threads_compute_end():
    code = """
stop = threading.Event()
def compute():
    while not stop.is_set(): dense_crf(image[:60], unary[:, :60], iterations=1, threads=2)
threads = [threading.Thread(target=compute) for _ in range(3)]
for thread in threads: thread.start()
statuses = []
for i in range(25):
    if (child := os.fork()) == 0:
        signal.alarm(20)
        dense_crf(image[: 20 + i], unary[:, : 20 + i], iterations=1, threads=2)
        os._exit(0)
    statuses.append(os.waitpid(child, 0)[1])
stop.set()
for thread in threads: thread.join()
print(set(statuses))
"""
    assert run(code).stdout == "{0}\n"


def test_the_interpreter_ends_while_daemon_threads_compute():
    code = """
def compute():
    while True: dense_crf(image, unary, threads=2)
for _ in range(3): threading.Thread(target=compute, daemon=True).start()
time.sleep(0.3)
print("end")
"""
    for _ in range(3):
        result = run(code)
        assert (result.returncode, result.stdout, result.stderr) == (0, "end\n", "")


def test_an_interrupt_ends_a_call_within_a_second_of_each_thread():
    code = """
signal.signal(signal.SIGINT, signal.default_int_handler)
crf = DenseCRF(image, threads=THREADS)
values = np.ones((1000, 40000), np.float32)
calls = [lambda: crf.marginals(unary, 10**6), lambda: [crf.pairwise[1].lattice.filter(values) for _ in range(100)]]
for call in calls:
    fired = []
    def fire():
        fired.append(time.process_time())  # of this process alone: others may hold the machine
        os.kill(os.getpid(), signal.SIGINT)
    threading.Timer(0.5, fire).start()
    try:
        call()
        print("not interrupted")
    except KeyboardInterrupt:
        print(time.process_time() - fired[0] < THREADS)
crf.marginals(unary, 1)
"""
    for threads in (1, 2):
        assert run(code.replace("THREADS", str(threads))).stdout == "True\nTrue\n"
