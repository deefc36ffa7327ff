"""A run folder that is in use, on a read-only or full disk, and the permissions of its files."""

import os
import shutil
import stat
import subprocess
import sys

import pytest

from amn_fast import pipeline
from amn_fast.errors import InputError
from command_line import command, refusal

from .runs import assert_same

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_folder_serves_one_process_at_a_time(copy_of_run):
    config, _ = copy_of_run("run")
    with subprocess.Popen(
        [sys.executable, "-S", "-c", HOLDER, str(config.run / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        try:
            with pytest.raises(InputError) as caught:
                pipeline.run(config)
        finally:
            holder.kill()
    assert str(caught.value) == f"run folder {config.run} is in use by another process, expected one at a time"
    pipeline.run(config)


@pytest.fixture
def tmpfs(tmp_path):
    """Mounts a small file system in memory; gives a function of its size and further options."""
    place = tmp_path / "small"
    place.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
        return place

    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    yield mount
    subprocess.run(["umount", place], capture_output=True)


def test_a_read_only_disk(copy_of_run, finished, tmpfs):
    """A finished run shows its results; anything to compute is refused with one sentence."""
    _, file = copy_of_run("run")
    place = tmpfs("size=400m")
    shutil.copytree(finished.run, place / "run")
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    status, output, errors = command("run", file, "--run", place / "run")
    assert status == 0, errors
    assert f"report: {place / 'run' / 'report.html'}" in output
    assert refusal("run", file, "--run", place / "run", "--set", "mask.background=0.6", "--overwrite") == (
        f"{place / 'run'}: Read-only file system"
    )
    assert refusal("run", file, "--run", place / "new") == f"{place / 'new'}: Read-only file system"


# What a run holds grows from stage to stage, so that each size is full at another place: at the weights and their
# checkpoint (some 20 MB), in the middle of a folder of small files.
@pytest.mark.parametrize(("without", "room_kb"), [("train-cam", 300), ("refine-seed", 40), ("make-mask", 60)])
def test_a_full_disk(copy_of_run, tmpfs, finished, without, room_kb):
    config, file = copy_of_run("run", (without,))
    place = tmpfs("size=400m")
    shutil.copytree(config.run, place / "run", copy_function=shutil.copy)
    space = os.statvfs(place)
    filler = place / "filler"
    with filler.open("wb") as fill:
        os.posix_fallocate(fill.fileno(), 0, max(0, space.f_bavail * space.f_frsize - room_kb * 1024))
    status, _, errors = command(without, file, "--run", place / "run")
    assert status == 1
    assert errors.splitlines()[-1].startswith(f"amn-fast: {place / 'run'}"), errors
    assert errors.splitlines()[-1].endswith(": No space left on device")
    assert not list((place / "run").rglob("*.tmp"))  # nothing half-written stays
    filler.unlink()
    pipeline.run(config.model_copy(update={"run": place / "run"}))
    assert_same(place / "run", finished.run)


def test_files_have_the_permissions_of_the_umask(copy_of_run):
    config, _ = copy_of_run("run", ("make-mask", "evaluate"))
    before = os.umask(0o077)
    try:
        pipeline.run(config)
    finally:
        os.umask(before)
    new = [config.run / "masks/demo_000.png", config.run / "report.html", config.run / "stages/make-mask.json"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in new} == {0o600}
