"""Trains a network: python train.py --config configs/shapes.py --workdir runs/shapes"""

import sys

from jaxseg.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
