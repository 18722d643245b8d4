"""What launch/ holds is well-formed; one_host.sh runs in cluster_test.py."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parent.parent / "launch"


@pytest.mark.parametrize("name", ["one_host.sh", "slurm.sbatch", "tpu_vm.sh"])
def test_scripts_are_bash(name):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)


def _stand_in(folder, name, script):
    """A program that is not here, which notes its arguments."""
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
    (folder / name).chmod(0o755)


def _run(script, folder, *arguments, **environment):
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments],
        env=os.environ | {"PATH": path} | environment,
        capture_output=True,
        text=True,
    )


def test_every_worker_of_a_tpu_gets_the_command(tmp_path):
    _stand_in(tmp_path, "gcloud", 'printf "%s\\n" "$@"')
    flags = ["--config=c.py", "--config.data.image_size=(2, 3)"]
    result = _run("tpu_vm.sh", tmp_path, *flags, TPU="my-slice", ZONE="here")
    *ssh, command = result.stdout.splitlines()
    assert ssh[-3:] == ["my-slice", "--zone=here", "--worker=all"]
    # As the shell of the worker reads it.
    words = subprocess.check_output(
        ["bash", "-c", f"printf '%s\\n' {command.partition('train.py ')[2]}"], text=True
    )
    assert words.splitlines() == flags
    assert "name of the TPU" in _run("tpu_vm.sh", tmp_path, ZONE="here").stderr


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (143, True)])
def test_slurm_queues_what_was_preempted_again(tmp_path, status, requeued):
    _stand_in(tmp_path, "srun", f'echo "srun $@"; exit {status}')
    _stand_in(tmp_path, "scontrol", 'echo "scontrol $@"')
    slurm = {"SLURM_JOB_ID": "12", "SLURM_CPUS_PER_TASK": "8"}
    result = _run("slurm.sbatch", tmp_path, "--config=c.py", **slurm)
    assert result.returncode == status
    assert "--cpus-per-task=8" in result.stdout
    assert "train.py --config=c.py" in result.stdout
    assert ("scontrol requeue 12" in result.stdout) == requeued


def test_one_host_keeps_to_the_gpus_that_it_may_use(tmp_path):
    _stand_in(tmp_path, "python", 'echo "$CUDA_VISIBLE_DEVICES: $@"')
    _stand_in(tmp_path, "nvidia-smi", "printf 'GPU 0\nGPU 1\nGPU 2\n'")

    def started(**environment):
        python = str(tmp_path / "python")
        result = _run("one_host.sh", tmp_path, "--x", PYTHON=python, **environment)
        return sorted(result.stdout.splitlines())

    lines = started(CUDA_VISIBLE_DEVICES="2,5")
    assert [line.split(":")[0] for line in lines] == ["2", "5"]
    assert all("train.py --x" in line and "--num_processes=2" in line for line in lines)
    assert [line[-1] for line in lines] == ["0", "1"]
    assert [x.split(":")[0] for x in started(GPUS="2")] == ["0", "1"]
    assert [x.split(":")[0] for x in started(GPUS="1", CUDA_VISIBLE_DEVICES="7,8")] == [
        "7"
    ]
    assert [line.split(":")[0] for line in started()] == ["0", "1", "2"]
    assert started(GPUS="3", CUDA_VISIBLE_DEVICES="7,8") == []


def _assert_within(part, whole, path=""):
    """All that one tree says the other says too; it may have defaults more."""
    if isinstance(part, dict):
        for key, value in part.items():
            assert key in whole, f"{path}/{key} is no field"
            _assert_within(value, whole[key], f"{path}/{key}")
    elif isinstance(part, list):
        assert len(part) == len(whole)
        for i, (a, b) in enumerate(zip(part, whole)):
            _assert_within(a, b, f"{path}/{i}")
    else:
        assert part == whole, path


def test_the_jobset_is_one():
    """By the API's own schema: every field is known, none that is needed lacks."""
    schema = pytest.importorskip("kubeflow_trainer_api.models.jobset_v1alpha2_job_set")
    content = yaml.safe_load((LAUNCH / "gke_tpu.yaml").read_text())
    assert content["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    parsed = schema.JobsetV1alpha2JobSet.from_dict(content)
    _assert_within(content, parsed.to_dict())


def test_the_jobset_fills_its_slice():
    content = yaml.safe_load((LAUNCH / "gke_tpu.yaml").read_text())
    job = content["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    rows, columns = map(int, topology.split("x"))
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == rows * columns // chips
    assert container["resources"]["requests"] == container["resources"]["limits"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    workdir = container["command"][-1].removeprefix("--workdir=")
    assert workdir.startswith(mounts["shared"])
