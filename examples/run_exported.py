"""Runs a network that `jaxseg export` has written. Needs no jaxseg:

pip install jax flatbuffers pillow
python run_exported.py camvid.stablehlo street.jpg --output street.png
"""

import argparse
import json
from pathlib import Path

import numpy as np
from jax import export
from PIL import Image, ImageOps

parser = argparse.ArgumentParser(description="Segments an image.")
parser.add_argument("network", type=Path, help="what jaxseg export has written")
parser.add_argument("image", type=Path, help="of 8 bits a channel")
parser.add_argument("--output", type=Path, required=True, help="a png to write")
args = parser.parse_args()

network = export.deserialize(bytearray(args.network.read_bytes()))
about = json.loads(args.network.with_suffix(".json").read_text())

with Image.open(args.image, formats=["PNG", "JPEG", "WEBP", "TIFF"]) as picture:
    mode = "L" if about["input"]["shape"][3] == 1 else "RGB"
    image = np.asarray(ImageOps.exif_transpose(picture).convert(mode))
image = image.reshape(1, *image.shape[:2], -1)  # [1, H, W, C]

classes = np.asarray(network.call(image))[0]
if classes.ndim == 3:  # exported with --output-kind probabilities
    classes = classes.argmax(axis=-1).astype(np.uint8)

picture = Image.fromarray(classes)
picture.putpalette([value for color in about["palette"] for value in color])
picture.save(args.output)
for number, pixels in enumerate(np.bincount(classes.ravel())):
    if pixels:
        print(f"{pixels / classes.size:6.1%}  {about['class_names'][number]}")
