"""A short run of the fuzzer, and that it notices what is wrong."""

import os
from pathlib import Path

import pytest

from benchmarks import fuzz
from benchmarks.fuzzing import targets, worker
from benchmarks.fuzzing.corpus import VARIABLE, build_corpus

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux"
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "corpus"
    build_corpus(folder)
    return folder


@pytest.fixture
def sandbox(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(corpus))
    return worker.Sandbox(tmp_path)


def test_every_input_is_refused_or_read_rightly(corpus):
    done = fuzz.run(list(fuzz.shares(250)), jobs=1, corpus=corpus)
    assert len(done) == 250
    assert not fuzz.describe_failures(done, seed=0)


@pytest.mark.parametrize("target", targets.TARGETS)
def test_a_case_depends_only_on_its_number(target, sandbox):
    def make(number):
        sandbox.clear()
        opened, rng, changes = worker.make_case(target, 0, number, sandbox)
        files = [p for p in sorted(sandbox.case.rglob("*")) if p.is_file()]
        files = {p: p.read_bytes() for p in files if p.stat().st_size < 2**20}
        listed = sorted(worker.snapshot(sandbox.case))
        return opened, rng.random(), changes, files, listed

    assert all(make(number) == make(number) for number in range(3))
    assert make(1) != make(2)


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("opens", "verdict", "message"),
    [
        (lambda path, rng: None, "result", ""),
        (lambda path, rng: _raise(ValueError(f"{path}: no")), "ValueError", "no"),
        (lambda path, rng: (path / "absent").open(), "FileNotFoundError", "absent"),
        (lambda path, rng: _raise(ValueError("no")), "FAILURE", "does not name"),
        (lambda path, rng: _raise(KeyError(str(path))), "FAILURE", "KeyError"),
        (lambda path, rng: _raise(MemoryError), "FAILURE", "MemoryError"),
        (lambda path, rng: targets.require(False, "odd"), "FAILURE", "odd"),
        (lambda path, rng: os.write(2, b"\n" * 99), "FAILURE", "printed pages"),
        (lambda path, rng: (path / "new").touch(), "FAILURE", "changed the input"),
        (lambda path, rng: (path / "../outside/x").touch(), "FAILURE", "touched"),
    ],
)
def test_verdicts(opens, verdict, message, sandbox, tmp_path, monkeypatch):
    changed = targets.Target(1, opens)
    monkeypatch.setitem(targets.TARGETS, "metadata", changed)
    # Standard error is a file, as in a worker.
    saved, noise = os.dup(2), os.open(tmp_path / "noise", os.O_RDWR | os.O_CREAT)
    os.dup2(noise, 2)
    try:
        outcome = worker.run_case("metadata", 0, 0, sandbox)
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(noise)
    assert (outcome.verdict, message in outcome.message) == (verdict, True)


def test_a_hang_and_a_crash_are_failures_of_one_case(corpus, tmp_path):
    one = worker.Worker(tmp_path, corpus, 0, (1e-3, 1024))
    try:
        hung = one.run("metadata", 0)
        one._seconds = 20
        one._process.kill()
        one._process.wait()
        crashed = one.run("metadata", 0)
        assert one.run("metadata", 0).verdict != "FAILURE"
    finally:
        one.close()
    assert hung.verdict == crashed.verdict == "FAILURE"
    assert "no end" in hung.message
    assert "crashed" in crashed.message
