"""One process of two in distributed_test.py: its config, and what it does.

    python tests/parallel/distributed_process.py PORT PROCESS_ID FOLDER

It does much, one thing after the other, for processes take long to start.
"""

import contextlib
import json
import os
import signal
import sys
import zlib
from pathlib import Path
from unittest import mock

from tests.helpers import tiny_config


def get_config():
    """Ten steps of a very small network on twelve images, four at a time."""
    config = tiny_config("")
    # AdamW would make more of differences by rounding.
    config.optimizer.name = "sgd"
    config.schedule.learning_rate = 0.05
    config.augment.flip = 0.0
    config.train.steps = 10
    config.train.log_every_steps = 1
    config.train.eval_every_steps = 3
    config.train.save_every_steps = 2
    config.eval.overlays = 3
    config.parallel.data = -1
    return config.lock()


def watch_batches(seen, act=lambda: None):
    """Notes the labels of this process's samples, by step, as they go to the devices.

    Returns:
        A function to stop it.
    """
    from jaxseg.parallel.mesh import Parallel

    place = Parallel.place

    def watching(self, batch):
        if "size" not in batch:  # those of evaluation have it
            seen.append([zlib.crc32(label.tobytes()) for label in batch["label"]])
            act()
        return place(self, batch)

    Parallel.place = watching
    return lambda: setattr(Parallel, "place", place)


def main():
    """See the module's docstring."""
    port, process, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])

    import jax
    import orbax.checkpoint as ocp

    from jaxseg.checkpoints import manager
    from jaxseg.parallel import distributed
    from jaxseg.parallel import mesh as mesh_module
    from jaxseg.training import trainer

    distributed.connect(f"127.0.0.1:{port}", 2, process, heartbeat_timeout_s=10)
    report = {"devices": [jax.local_device_count(), jax.device_count()]}

    def run(name, **changes):
        config = get_config()
        config.data.prepared_dir = str(folder / "prepared")
        config.init_from = str(folder / "start")
        config.update_from_flattened_dict(changes)
        trainer.run(config, str(folder / name))

    report["any_process"] = [
        distributed.any_process(process == 1),
        distributed.any_process(False),
    ]
    largest = distributed.MaxAcrossProcesses(lag=2)
    mine = ([0, 2, 0, 0, 0, 0], [0, 0, 15, 1, 0, 0])[process]
    report["largest"] = [largest(number) for number in mine]

    try:
        run("differing", **{"train.batch_size": 4 + 4 * process})
    except ValueError as error:
        report["differing"] = str(error)

    try:
        own = folder / f"own_{process}"
        own.mkdir()
        distributed.check_shared(own)
    except ValueError as error:
        report["own"] = str(error)

    # Not that of the run in one process: elastic to that too.
    mesh_module.LEAST_SPLIT = 16
    fsdp = {"parallel.fsdp": True}
    report["seen"] = []
    stop_watching = watch_batches(report["seen"])
    run("whole", **fsdp, **{"train.steps": 6})
    stop_watching()

    try:
        unreadable = mock.patch.object(ocp.Checkpointer, "restore", side_effect=OSError)
        with unreadable if process else contextlib.nullcontext():
            run("whole", **fsdp, **{"train.steps": 6})
    except manager.CorruptCheckpointError as error:
        report["damaged"] = str(error)

    run("pmap", **{"train.steps": 2, "parallel.backend": "pmap"})

    def send(signum, step):
        """Sends the second process a signal when that step's batch is at hand."""
        seen = []

        def act():
            if len(seen) == step and process == 1:
                os.kill(os.getpid(), signum)

        return watch_batches(seen, act)

    stop_watching = send(signal.SIGINT, 2)
    try:
        run("stopped", **fsdp)
    except trainer.Interrupted as stop:
        report["stopped"] = [stop.signum, str(stop)]
    stop_watching()
    (folder / f"report_{process}.json").write_text(json.dumps(report))

    send(signal.SIGKILL, 5)  # the ninth, after four
    run("stopped", **fsdp)


if __name__ == "__main__":
    main()
