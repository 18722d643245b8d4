"""Trains a network: python train.py --config configs/shapes.py --workdir runs/shapes"""

from absl import app, flags, logging
from ml_collections import config_flags

from jaxseg import trainer
from jaxseg.compilation import enable_compilation_cache

CONFIG = config_flags.DEFINE_config_file("config", None, "What to train, and how.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; resumed if it exists."
)


def main(argv: list[str]) -> None:
    """Hands the flags to the trainer, and its errors to the user."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    enable_compilation_cache()
    try:
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
    except (flags.Error, AttributeError, KeyError) as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)
