"""A job on a Ray cluster of two nodes on this machine, one of which is killed."""

import json
import threading
import time

import pytest

pytest.importorskip("ray")  # wheels follow new versions of Python late

import ray
from ray.cluster_utils import Cluster

from amn_fast.label import jobs
from amn_fast.label.jobs import Options, label_images
from tiny_run import InThisProcess, outputs, write_images


def test_a_node_is_killed(run, tmp_path, monkeypatch):
    file = write_images(tmp_path / "images", 60)
    (tmp_path / "images" / "image_00007.png").write_bytes(b"RIFF")
    options = Options(labels=file, shard_size=3, quiet=True)
    with monkeypatch.context() as here:
        here.setattr(jobs, "Crew", InThisProcess)
        label_images(run, str(tmp_path / "images"), str(tmp_path / "alone"), options)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1, resources={"second": 1})
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.wait_for_nodes()
        out, killed, end = tmp_path / "out", [], time.monotonic() + 120

        def workers():
            """Those that have finished a shard."""
            return {json.loads(log.read_text().splitlines()[0])["pid"] for log in out.glob("logs/0*.jsonl")}

        def finished():
            return len(list(out.glob("manifests/*.json")))

        def kill():
            # On a busy machine, one node may be through most of the shards before the other has begun.
            while (finished() < 2 or (len(workers()) < 2 and finished() < 12)) and time.monotonic() < end:
                time.sleep(0.02)
            cluster.remove_node(second, allow_graceful=False)
            killed.append(finished())

        killer = threading.Thread(target=kill)
        killer.start()
        on_ray = Options(labels=file, shard_size=3, quiet=True, ray=cluster.address, threads=1)
        found = label_images(run, str(tmp_path / "images"), str(out), on_ray)
        killer.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert 2 <= killed[0] < 20  # in the middle
    assert (found.finished, found.errors, found.shards_done) == (60, 1, 20)
    assert outputs(out) == outputs(tmp_path / "alone")
