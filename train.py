"""Trains a network: python train.py --config configs/shapes.py --workdir runs/shapes"""

import signal

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "What to train, and how.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, old or new.")
CLUSTER = (  # of several processes; see docs/pods.md
    flags.DEFINE_string("coordinator", None, "host:port of process 0."),
    flags.DEFINE_integer("num_processes", None, "How many there are."),
    flags.DEFINE_integer("process_id", None, "Number of this one, from 0."),
    flags.DEFINE_integer("start_timeout_s", None, "For them to meet; 120."),
    flags.DEFINE_integer("heartbeat_timeout_s", None, "For one to be silent; 30."),
)


def main(argv: list[str]) -> None:
    """Hands the flags to the trainer, and its errors to the user."""
    from jaxseg.parallel import distributed, trainer
    from jaxseg.parallel.compilation import enable_compilation_cache

    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    enable_compilation_cache()
    try:
        given = {flag.name: flag.value for flag in CLUSTER if flag.value is not None}
        distributed.connect(**given)
        trainer.run(CONFIG.value, WORKDIR.value)
    except trainer.Interrupted as stop:
        print(stop)
        raise SystemExit(128 + stop.signum) from None
    except (ValueError, OSError, trainer.NonFiniteLossError) as error:
        logging.debug("The error came from here:", exc_info=True)
        raise SystemExit(f"error: {error} (traceback: --verbosity=1)") from None


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; a config key that does not exist is an error like any other."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise SystemExit(f"error: {error}") from None
    except (AttributeError, KeyError) as error:
        from jaxseg.cli.common import unknown_key

        raise SystemExit(f"error: {unknown_key(error)}") from None


if __name__ == "__main__":
    # Until there is something to save, Ctrl-C ends the process at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)
