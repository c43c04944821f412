"""The side-by-side comparison takes turns, and its two workers answer the same orders."""

from __future__ import annotations

import json
import sys

import pytest
from layerlift.bench import compare, peer
from layerlift.bench.measure import Test

# Answers like a worker; each run takes the next of its seconds.
STUB = """
import json, sys
times = iter([float(t) for t in sys.argv[1].split(",")])
print(json.dumps({"load": 0.5}), flush=True)
for line in sys.stdin:
    print(json.dumps({"seconds": next(times), "resident": 5 << 20}), flush=True)
"""


@pytest.fixture
def workers():
    made = []

    def make(*commands):
        made.extend(compare.Worker(command) for command in commands)
        return made

    yield make
    for worker in made:
        worker.close()


def stub(seconds):
    return [sys.executable, "-c", STUB, seconds]


def test_the_ratio_is_of_medians_without_the_warm_up(workers):
    ours, peers = workers(stub("9,1,2,4"), stub("9,8,4,2"))
    (result,) = compare.compare(ours, peers, "m", [Test(8, 0)], rounds=3, pause=0)
    assert result.ours == (8.0, 4.0, 2.0)
    assert result.peer == (1.0, 2.0, 4.0)
    assert result.ratio == 2.0
    assert (result.test, result.ours_resident, result.ours_load) == ("pp8", 5 << 20, 0.5)
    head, _, row = compare.table([result]).splitlines()
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["m", "pp8", "4.00", "2.00", "2.00", "5", "5", "0.50"]
    assert "llama.cpp" in head


def test_our_worker_answers_orders_with_seconds_and_memory(workers, tiny):
    command = [sys.executable, "-m", "layerlift.bench.compare", "--work", str(tiny("Q4_0")), "-t", "1", "-c", "64"]
    (ours,) = workers(command)
    assert ours.load > 0
    for test in (Test(32, 0), Test(0, 4)):
        answer = ours.run(test)
        assert answer["seconds"] > 0
        assert answer["resident"] > 1 << 20


def test_a_worker_that_dies_is_named(workers):
    with pytest.raises(SystemExit, match="exit code 3"):
        workers([sys.executable, "-c", "raise SystemExit(3)"])


def test_the_peers_program_is_python():
    compile(peer.PROGRAM, "peer", "exec")
    assert json.dumps("resident") in peer.PROGRAM


def test_without_a_peer_the_command_says_what_to_give(capsys, monkeypatch):
    monkeypatch.setattr(compare, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        compare.main(["model.gguf"])
    assert "--peer-python" in capsys.readouterr().err
