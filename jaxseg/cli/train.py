"""`jaxseg train`: training a network by a config."""

import faulthandler
import signal
from argparse import Namespace

from jaxseg.cli.common import Commands, add_command, complain


def add(commands: Commands) -> None:
    """Adds `jaxseg train`."""
    parser = add_command(
        commands,
        "train",
        run,
        summary="train a network",
        description="Trains and evaluates the network of a config. Run the same command\n"
        "again to resume. Any key of the config can be set: --config.train.steps=500.\n"
        "SIGTERM and Ctrl-C save a checkpoint first; the exit status is then 128 plus\n"
        "the signal's number.",
        example="jaxseg configs shapes --output shapes.py\n"
        "  jaxseg train --config shapes.py --workdir runs/shapes",
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="Python file with a function get_config(); FILE:TEXT calls get_config(TEXT)",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="folder for checkpoints and metrics; training resumes if it has any",
    )
    parser.add_argument(
        "--verbosity",
        type=int,
        default=-1,
        metavar="N",
        help="log messages: -1 for warnings, 0 for information, 1 for debugging "
        "(default: -1)",
    )
    processes = parser.add_argument_group(
        "several processes",
        "On TPU pods, GKE, Slurm and Open MPI these are detected. See docs/pods.md.",
    )
    processes.add_argument(
        "--coordinator", metavar="HOST:PORT", help="address of process 0"
    )
    processes.add_argument(
        "--num_processes", type=int, metavar="N", help="total number of processes"
    )
    processes.add_argument(
        "--process_id", type=int, metavar="I", help="number of this process, from 0"
    )
    processes.add_argument(
        "--start_timeout_s",
        type=int,
        metavar="S",
        help="seconds to wait for all processes to start (default: 120)",
    )
    processes.add_argument(
        "--heartbeat_timeout_s",
        type=int,
        metavar="S",
        help="seconds without a heartbeat after which a process is considered dead "
        "(default: 30)",
    )
    parser.set_defaults(takes_config=True)


def run(args: Namespace) -> int:
    """Runs the command."""
    # Until there is something to save, Ctrl-C ends the process at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    faulthandler.enable()

    from absl import logging

    from jaxseg.cli.config_file import read_config
    from jaxseg.parallel import distributed
    from jaxseg.parallel.compilation import enable_compilation_cache
    from jaxseg.training import run as train
    from jaxseg.training.errors import NonFiniteLossError
    from jaxseg.training.interrupt import Interrupted

    logging.use_absl_handler()
    logging.set_verbosity(args.verbosity)
    enable_compilation_cache()
    names = (
        "coordinator",
        "num_processes",
        "process_id",
        "start_timeout_s",
        "heartbeat_timeout_s",
    )
    given = {
        name: value for name in names if (value := getattr(args, name)) is not None
    }
    try:
        config = read_config(args.config, args.overrides)
        distributed.connect(**given)
        train(config, args.workdir)
    except Interrupted as stop:
        print(stop, flush=True)
        return 128 + stop.signum
    except (ValueError, OSError, MemoryError, NonFiniteLossError) as error:
        if args.debug:
            raise
        complain(error)
        return 1
    except Exception:
        # Nobody expected it, so the traceback of a long run must not be lost.
        args.debug = True
        raise
    return 0
