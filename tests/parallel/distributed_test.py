"""Two processes of two devices each, on this machine, against one of four."""

import contextlib
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from jaxseg import create_model, load
from jaxseg.checkpoints.run import find_step, save
from jaxseg.parallel import distributed
from jaxseg.training import trainer
from jaxseg.training.config import model_kwargs
from jaxseg.training.interrupt import Interrupted
from jaxseg.weights.mapping import IMAGENET

ROOT = Path(__file__).parents[2]
PROCESS = ROOT / "tests/parallel/distributed_process.py"
PARTS = runpy.run_path(str(PROCESS))
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "2",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "PYTHONPATH": str(ROOT),
    "PYTHON": sys.executable,
}
TIMEOUT_S = 300


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _start(command, output, **environment):
    """Starts a process, with what it says in two files."""
    with open(f"{output}.out", "w") as out, open(f"{output}.err", "w") as err:
        return subprocess.Popen(
            [str(part) for part in command],
            stdout=out,
            stderr=err,
            env=os.environ | ENVIRONMENT | environment,
            cwd=ROOT,
            start_new_session=True,
        )


def _said(output):
    """Lines of a process's standard output; not those of the library under JAX."""
    lines = Path(f"{output}.out").read_text().splitlines()
    return [line for line in lines if not line.startswith("[Gloo]")]


def _config(folder, **changes):
    config = PARTS["get_config"]()
    config.data.prepared_dir = str(folder / "prepared")
    config.init_from = str(folder / "start")
    config.update_from_flattened_dict(changes)
    return config


def _metrics(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in x.items() if k != "images_per_second"} for x in lines]


def _leaves(workdir, step):
    _, variables, _ = load(workdir, str(step))
    return jax.tree.leaves(variables)


def _assert_close(ours, theirs):
    """Compares lines of metrics.jsonl to float32 rounding."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys() and a["step"] == b["step"]
        for name in a.keys() - {"step", "val_iou"}:
            # Rounding may turn a pixel's class.
            tolerance = 1e-2 if name.startswith("val") else 1e-4
            assert a[name] == pytest.approx(b[name], rel=tolerance), name


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What became of the two: a folder with their runs, reports and output."""
    folder = tmp_path_factory.mktemp("pair")
    config = PARTS["get_config"]()
    model = model_kwargs(config, 6)
    image = np.zeros((1, 16, 24, 3), np.float32)
    init = partial(create_model(**model).init, train=False)
    variables = jax.jit(init)(jax.random.key(7), image)
    save(folder / "start", variables, model=model, normalization=IMAGENET)

    port = _free_port()
    processes = [
        _start([sys.executable, PROCESS, port, number, folder], folder / str(number))
        for number in range(2)
    ]
    try:
        killed = processes[1].wait(TIMEOUT_S)
        then = time.monotonic()
        left = processes[0].wait(TIMEOUT_S)
        seconds = time.monotonic() - then
    finally:
        for process in processes:
            process.kill()
    assert killed == -signal.SIGKILL, (folder / "1.err").read_text()
    (folder / "end.json").write_text(json.dumps({"status": left, "seconds": seconds}))
    return folder


@pytest.fixture(scope="module")
def reports(pair):
    return [json.loads((pair / f"report_{n}.json").read_text()) for n in range(2)]


@pytest.fixture(scope="module")
def alone(pair, tmp_path_factory):
    """The same run in one process of four devices, and the samples that it took."""
    workdir = tmp_path_factory.mktemp("alone")
    seen = []
    stop_watching = PARTS["watch_batches"](seen)
    trainer.run(_config(pair), str(workdir))
    stop_watching()
    return workdir, seen


def test_two_processes_give_the_losses_of_one(pair, reports, alone):
    assert [report["devices"] for report in reports] == [[2, 4], [2, 4]]
    ours, theirs = _metrics(pair / "whole"), _metrics(alone[0])
    assert [x["step"] for x in ours] == [1, 2, 3, 3, 4, 5, 6, 6]
    _assert_close(ours, theirs[: len(ours)])


def test_each_sample_once_an_epoch(reports, alone):
    steps = [a + b for a, b in zip(*(report["seen"] for report in reports))]
    assert all(len(report["seen"][0]) == 2 for report in reports)
    assert steps == alone[1][:6]  # the order is that of one process
    samples = [sample for step in steps for sample in step]
    assert len(set(samples[:12])) == 12
    assert sorted(samples[:12]) == sorted(samples[12:])


def test_only_the_first_process_writes_and_speaks(pair):
    assert _said(pair / "1") == []
    said = "\n".join(_said(pair / "0"))
    assert said.count("on 4 cpu device(s) of 2 processes") == 4
    assert said.count("initialized from") == 3  # not in the resumed run
    assert "step 6/6" in said
    assert {path.name for path in (pair / "whole/overlays").iterdir()} == {
        "step_0000003.png",
        "step_0000006.png",
    }


def test_all_stop_at_one_step_and_go_on_exactly(pair, reports):
    """SIGINT to the second in step 2; resumed, bit for bit the undisturbed run."""
    assert reports[0]["stopped"] == reports[1]["stopped"]
    signum, text = reports[0]["stopped"]
    assert signum == signal.SIGINT
    assert "saved after step 4" in text  # two are under way when it is agreed upon
    whole = _metrics(pair / "whole")
    assert _metrics(pair / "stopped")[: len(whole)] == whole
    for a, b in zip(_leaves(pair / "stopped", 6), _leaves(pair / "whole", 6)):
        np.testing.assert_array_equal(a, b)


def test_pmap_over_two_processes(pair, alone):
    ours = _metrics(pair / "pmap")
    _assert_close(ours[:2], _metrics(alone[0])[:2])
    assert find_step(pair / "pmap", "latest") == 2


def test_processes_agree(reports):
    for report in reports:
        assert report["any_process"] == [True, False]
        assert report["largest"] == [0, 0, 0, 2, 15, 1]


def test_processes_of_different_configs_are_refused(pair, reports):
    for report in reports:
        assert "train.batch_size: 4 on process 0; 8 on process 1" in report["differing"]
        assert "seed" not in report["differing"]
    assert not (pair / "differing").exists()


def test_a_workdir_that_is_not_shared_is_refused(pair, reports):
    for number, report in enumerate(reports):
        assert f"own_{number} are not visible on process 1" in report["own"]
    assert [list(folder.iterdir()) for folder in pair.glob("own_*")] == [[], []]


def test_a_checkpoint_that_one_alone_cannot_read_stops_both(reports):
    for report in reports:
        assert "checkpoints/6 cannot be read" in report["damaged"]
        assert "--config.checkpoint.fallback=True" in report["damaged"]


def test_a_killed_process_ends_the_other(pair):
    end = json.loads((pair / "end.json").read_text())
    assert end["status"] != 0
    assert end["seconds"] < 60
    assert "another" in (pair / "0.err").read_text()


@pytest.mark.parametrize("devices", [4, 1])
def test_goes_on_on_other_processes_and_devices(pair, alone, tmp_path, devices):
    """Killed on two processes of two devices; goes on in one of four, and of one."""
    workdir = tmp_path / "stopped"
    shutil.copytree(pair / "stopped", workdir)
    saved = find_step(workdir, "latest")
    assert saved in (6, 8)
    seen = []
    stop_watching = PARTS["watch_batches"](seen)
    trainer.run(_config(pair, **{"parallel.data": devices}), str(workdir))
    stop_watching()
    assert seen == alone[1][saved:]  # the exact next sample
    _assert_close(_metrics(workdir), _metrics(alone[0]))
    for a, b in zip(_leaves(workdir, 10), _leaves(alone[0], 10), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def _flags(folder, *flags):
    return [
        f"--config={PROCESS}",
        f"--config.data.prepared_dir={folder}/prepared",
        f"--workdir={folder}/run",
        *flags,
    ]


def test_sigterm_to_one_stops_all_with_its_status(pair, alone, tmp_path):
    """By launch/one_host.sh, with two processes that would never end."""
    shutil.copytree(pair / "prepared", tmp_path / "prepared")
    endless = [
        f"--config.init_from={pair}/start",
        "--config.train.steps=100000",
        "--config.train.eval_every_steps=0",
    ]
    script = _start(
        [ROOT / "launch/one_host.sh", *_flags(tmp_path, *endless)],
        tmp_path / "both",
        GPUS="2",
        PORT=str(_free_port()),
    )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not any("step 2/" in line for line in _said(tmp_path / "both")):
            assert time.monotonic() < deadline and script.poll() is None
            time.sleep(0.1)
        children = subprocess.check_output(["pgrep", "-P", str(script.pid)], text=True)
        os.kill(int(children.split()[1]), signal.SIGTERM)
        status = script.wait(TIMEOUT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
    assert status == 128 + signal.SIGTERM
    step = find_step(tmp_path / "run", "latest")
    said = _said(tmp_path / "both")
    ends = [line for line in said if line.startswith("SIGTERM: saved after")]
    assert len(ends) == 2
    assert all(f"saved after step {step}" in line for line in ends)
    theirs = [x for x in _metrics(alone[0]) if "loss" in x]
    _assert_close(_metrics(tmp_path / "run")[:2], theirs[:2])


def test_a_coordinator_that_is_not_there(tmp_path):
    flags = [
        f"--coordinator=127.0.0.1:{_free_port()}",
        "--num_processes=2",
        "--process_id=1",
        "--start_timeout_s=1",
    ]
    command = [sys.executable, ROOT / "train.py", *_flags(tmp_path, *flags)]
    process = _start(command, tmp_path / "1")
    assert process.wait(TIMEOUT_S) == 1
    said = (tmp_path / "1.err").read_text()
    (line,) = [x for x in said.splitlines() if x.startswith("error:")]
    assert "not connect to 127.0.0.1:" in line and "within 1 s" in line
    assert "Check failure stack trace" not in said


# Without other processes.


@pytest.fixture
def calls(monkeypatch):
    """What `jax.distributed.initialize` was asked for, and no cluster around."""
    calls = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda **kwargs: calls.append(kwargs)
    )
    for name in (
        "SLURM_STEP_NUM_TASKS",
        "OMPI_COMM_WORLD_SIZE",
        "KUBERNETES_SERVICE_HOST",
    ):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 2, None), "Missing: coordinator, process_id;"),
        (("a:1", None, 0), "Missing: num_processes;"),
        (("a", 2, 0), "coordinator=a has no port"),
        (("a:1", 2, 2), "process_id=2 is out of range"),
        (("a:1", 2, -1), "process_id=-1 is out of range"),
    ],
)
def test_invalid_arguments(calls, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        distributed.connect(*arguments)
    assert "--" not in str(error.value)  # flags are a matter of the command line
    assert not calls


def test_arguments_are_passed_to_jax(calls):
    distributed.connect("host:1", 4, 3, heartbeat_timeout_s=7)
    (call,) = calls
    assert call["coordinator_address"] == "host:1"
    assert (call["num_processes"], call["process_id"]) == (4, 3)
    assert call["heartbeat_timeout_seconds"] == 7


@pytest.mark.parametrize(
    ("environment", "joins"),
    [
        ({}, True),  # JAX looks around
        ({"SLURM_STEP_NUM_TASKS": "8"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),  # a shell in a job of many tasks
        ({"SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"KUBERNETES_SERVICE_HOST": "x"}, False),  # a notebook in a pod
        ({"KUBERNETES_SERVICE_HOST": "x", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"KUBERNETES_SERVICE_HOST": "x", "TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ],
)
def test_clusters_and_what_looks_like_them(calls, monkeypatch, environment, joins):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.connect()
    assert bool(calls) == joins
    calls.clear()
    distributed.connect(num_processes=1)
    assert not calls


@pytest.mark.parametrize(
    ("name", "alone", "several"),
    [
        ("OMPI_COMM_WORLD_SIZE", "1", "4"),  # of version 5, which JAX does not know
        ("SLURM_STEP_NUM_TASKS", "1", "2"),
        ("JOB_COMPLETION_INDEX", "0", "1"),
    ],
)
def test_a_cluster_that_jax_does_not_find(calls, monkeypatch, name, alone, several):
    def initialize(**kwargs):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setenv(name, alone)
    distributed.connect()
    monkeypatch.setenv(name, several)
    with pytest.raises(ValueError, match=f"{name}={several} .* give coordinator"):
        distributed.connect()


def test_processes_need_as_many_devices_each(calls, monkeypatch):
    devices = [SimpleNamespace(process_index=k) for k in (0, 0, 1, 2, 2)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    with pytest.raises(ValueError, match="2 on process 0, 2; 1 on process 1"):
        distributed.connect("host:1", 3, 0)


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (
            JaxRuntimeError("UNKNOWN: no\nRPC"),
            ConnectionError,
            r"at a:1\..* \(UNKNOWN: no\)",
        ),
        (RuntimeError("called late"), RuntimeError, "called late"),
        (ValueError("of the cluster"), ValueError, "of the cluster"),
    ],
)
def test_starts_that_fail(monkeypatch, raised, kind, message):
    def initialize(**kwargs):
        raise raised

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(kind, match=message):
        distributed.connect("a:1", 2, 0)


@pytest.mark.parametrize(
    ("number", "cure"), [(0, "another port"), (1, "same process_id")]
)
def test_a_start_that_fails_says_what_it_may_be(monkeypatch, number, cure):
    def initialize(**kwargs):
        raise JaxRuntimeError("ALREADY_EXISTS")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ConnectionError, match=cure):
        distributed.connect("a:1", 2, number)


def test_a_process_without_a_cluster_is_left_alone_at_once():
    """By the true JAX, in a process that has not used it."""
    code = (
        "import time; from jaxseg.parallel import distributed; then = time.perf_counter();"
        "distributed.connect(); print(time.perf_counter() - then);"
        "import jax; assert not jax.distributed.is_initialized()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | ENVIRONMENT,
    )
    assert float(result.stdout) < 0.5
    assert result.stderr == ""


def test_a_process_that_failed_waits_for_the_others_so_long(capfd, monkeypatch):
    ended = []
    monkeypatch.setattr(distributed, "LEAVE_TIMEOUT_S", 0.01)
    monkeypatch.setattr(os, "_exit", ended.append)

    def wait(error):
        with distributed.limited_wait(error):
            time.sleep(0.2)

    wait(OSError("disk full"))
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    wait(None)
    wait(Interrupted(signal.SIGTERM, 5))
    assert not ended
    wait(OSError("disk full"))
    assert ended == [1]
    assert "error: disk full\nExiting: the other" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (JaxRuntimeError("INTERNAL: gloo"), ConnectionError, "another process exited"),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: x"), JaxRuntimeError, "EXHAUSTED"),
        (ValueError("x"), ValueError, "x"),
    ],
)
def test_an_error_among_processes(monkeypatch, error, kind, message):
    with pytest.raises(type(error)), distributed.leave_on_error():
        raise error
    monkeypatch.setattr(distributed, "_leave_after_exit", lambda: None)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(kind, match=message), distributed.leave_on_error():
        raise error


def test_a_process_that_failed_ends_though_its_exit_waits():
    code = (
        "import atexit, time, jax; from jaxseg.parallel import distributed;"
        "jax.distributed.is_initialized = lambda: True; distributed.LEAVE_TIMEOUT_S = 0.1\n"
        "atexit.register(time.sleep, 100)\n"  # as JAX's own waits for the others
        "with distributed.leave_on_error(): raise OSError('disk full')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT,
        timeout=60,
    )
    assert result.returncode == 1
    said = result.stderr.splitlines()
    assert said[-2:] == [
        "OSError: disk full",
        "Exiting: the other processes have not ended within 0.1 s.",
    ]
