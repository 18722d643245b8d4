"""Mean-field inference in a fully connected CRF with Gaussian edge potentials."""

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseg.ops import gaussian, permutohedral

_NAMES = ("w_bilateral", "sigma_xy", "sigma_rgb", "w_spatial", "sigma_spatial")

PRESETS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "deeplab": MappingProxyType(dict(zip(_NAMES, (5.0, 50.0, 10.0, 3.0, 3.0)))),
        "deeplab_v2": MappingProxyType(dict(zip(_NAMES, (4.0, 67.0, 3.0, 3.0, 1.0)))),
        "deconvnet": MappingProxyType(dict(zip(_NAMES, (5.0, 20.0, 3.0, 3.0, 3.0)))),
    }
)
"""Keyword arguments of `dense_crf`, all for 10 iterations on PASCAL VOC: DeepLab v1's
VGG16 (official `SetupEnv.m`), v2's ResNet-101 (the deeplab-pytorch config), DeconvNet's
(official `generate_EDeconvNet_CRF_results.m`)."""

FLOOR = 1e-5
"""Smaller probabilities count as this one, as in pydensecrf: no class is impossible."""


def dense_crf(
    probabilities: jax.Array,
    image: jax.Array,
    *,
    w_bilateral: float | jax.Array,
    sigma_xy: float | jax.Array,
    sigma_rgb: float | jax.Array,
    w_spatial: float | jax.Array,
    sigma_spatial: float,
    iterations: int = 10,
    valid: jax.Array | None = None,
    exact: bool = False,
) -> jax.Array:
    """Refines class probabilities so that pixels alike in place and colour agree.

    Mean field for the energy with unary terms -log p, Potts compatibility, and kernels

        k_b(i, j) = exp(-|xy_i - xy_j|^2 / (2 sigma_xy^2)
                        - |rgb_i - rgb_j|^2 / (2 sigma_rgb^2))
        k_s(i, j) = exp(-|xy_i - xy_j|^2 / (2 sigma_spatial^2))

    from q = p, all pixels at once, `iterations` times:

        q_i <- softmax(log p_i + w_bilateral * sum_j k_b'(i, j) q_j
                               + w_spatial * sum_j k_s'(i, j) q_j)

    where k' is k normalised symmetrically, k'(i, j) = k(i, j) / sqrt(n_i n_j) with
    n_i = sum_j k(i, j). The sums include j = i. Both are so in pydensecrf by default.

    The spatial filter is exact to float32. The bilateral one is the permutohedral
    lattice's, the reference implementation's own approximation (`permutohedral`):
    messages are off by 3 to 7 %, and after 10 iterations on a trained model's
    probabilities 0.5 to 2 % of the pixels get another class than by the exact kernel
    (`benchmarks/crf.py` measures it). `exact=True` sums over all pairs of pixels: for
    small images anywhere, and for photographs on an accelerator.

    Pure, and jitted as it is: one program per shape, `sigma_spatial`, `iterations`
    and `exact`. Everything else may be traced. Gradients reach the probabilities and
    both weights, and with `exact` also `sigma_xy` and `sigma_rgb`; the lattice
    refuses those. Under an outer `jit` values cannot be seen, so only shapes and types
    are checked. Give several images by a leading axis, rather than `vmap`: they go one
    by one, each with no more work than its own number of colours needs.

    Args:
        probabilities: of classes, [H, W, K] or [B, H, W, K], floating; each pixel's
            sum to 1. Those below 1e-5 count as 1e-5.
        image: RGB in [0, 255], not normalised, uint8 [H, W, 3] or [B, H, W, 3].
        w_bilateral: weight of pixels near in place and colour.
        sigma_xy: their standard deviation in place, in pixels.
        sigma_rgb: and in colour, in units of the image.
        w_spatial: weight of pixels near in place.
        sigma_spatial: their standard deviation, in pixels; a plain number.
        iterations: of mean field; 0 gives the probabilities back.
        valid: bool [H, W] or [B, H, W]; False is padding, which has no influence on
            the rest. All is valid by default.
        exact: whether to sum the bilateral kernel over all pairs, in O((H*W)^2) time
            and O(H*W) memory.

    Returns:
        Probabilities, float32, in the shape of `probabilities`. What they are in
        padding means nothing.

    Raises:
        ValueError: if shapes or types are not these, probabilities are no
            probabilities, a standard deviation is not above 0, or `sigma_spatial` is
            traced.

    Source: Krähenbühl and Koltun, Efficient inference in fully connected CRFs with
    Gaussian edge potentials, NIPS 2011, https://arxiv.org/abs/1210.5644.
    """
    if valid is None:
        valid = np.ones(np.shape(image)[:-1], bool)
    _check_arrays(probabilities, image, valid)
    _check_parameters(sigma_xy, sigma_rgb, sigma_spatial, iterations)
    if not any(isinstance(x, jax.core.Tracer) for x in (probabilities, valid)):
        _check_probabilities(probabilities, valid)
    infer = functools.partial(
        _mean_field,
        w_bilateral=w_bilateral,
        sigma_xy=sigma_xy,
        sigma_rgb=sigma_rgb,
        w_spatial=w_spatial,
        sigma_spatial=float(sigma_spatial),
        iterations=iterations,
        exact=exact,
    )
    return infer(probabilities, image, valid)


def pad_to_multiple(
    probabilities: np.ndarray, image: np.ndarray, multiple: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pads below and to the right, so that images of many sizes share programs.

        padded, image, valid = pad_to_multiple(probabilities, image, 64)
        q = dense_crf(padded, image, valid=valid, **PRESETS["deeplab"])[:h, :w]

    Args:
        probabilities: [H, W, K].
        image: [H, W, 3].
        multiple: of which height and width become one, in pixels.

    Returns:
        Both padded, and which pixels are not padding, bool, for `dense_crf`.
    """
    h, w = image.shape[:2]
    margins = ((0, -h % multiple), (0, -w % multiple))
    fill = 1 / probabilities.shape[-1]
    return (
        np.pad(probabilities, (*margins, (0, 0)), constant_values=fill),
        np.pad(image, (*margins, (0, 0))),
        np.pad(np.ones((h, w), bool), margins),
    )


@functools.partial(jax.jit, static_argnames=("sigma_spatial", "iterations", "exact"))
def _mean_field(probabilities, image, valid, **parameters):
    if probabilities.ndim == 4:
        one = functools.partial(_mean_field, **parameters)
        return lax.map(lambda x: one(*x), (probabilities, image, valid))
    return _mean_field_of_one(probabilities, image, valid, **parameters)


def _mean_field_of_one(
    probabilities,
    image,
    valid,
    *,
    w_bilateral,
    sigma_xy,
    sigma_rgb,
    w_spatial,
    sigma_spatial,
    iterations,
    exact,
):
    h, w, classes = probabilities.shape
    log_p = jnp.log(jnp.maximum(probabilities.astype(jnp.float32), FLOOR))
    # Whatever stands in padding, even NaN, is left out here.
    log_p = jnp.where(valid[:, :, None], log_p, 0).reshape(h * w, classes)
    valid = valid.reshape(h * w)

    def infer(bilateral, log_p, w_bilateral, w_spatial):
        def spatial(x):
            return gaussian.blur(x.reshape(h, w, -1), sigma_spatial).reshape(x.shape)

        bilateral = _normalized(bilateral, valid)
        spatial = _normalized(spatial, valid)

        def step(q, _):
            message = w_bilateral * bilateral(q) + w_spatial * spatial(q)
            return jax.nn.softmax(log_p + message), None

        return lax.scan(step, jax.nn.softmax(log_p), length=iterations)[0]

    weights = (jnp.float32(w_bilateral), jnp.float32(w_spatial))
    if exact:
        features = _features(image, sigma_xy, sigma_rgb)
        q = infer(functools.partial(gaussian.sum_pairs, features), log_p, *weights)
    else:
        features = _features(image, _constant(sigma_xy), _constant(sigma_rgb))
        lattice = permutohedral.build(features, valid)
        q = permutohedral.with_filter(lattice, infer, log_p, *weights)
    return q.reshape(h, w, classes)


def _normalized(filter_: Callable, valid: jax.Array) -> Callable:
    """The filter with its kernel normalised symmetrically, among valid pixels."""
    valid = valid[:, None].astype(jnp.float32)
    # Every pixel sees itself, so a sum is 0 only where nothing is valid.
    total = filter_(valid)
    scale = valid * lax.rsqrt(jnp.where(total > 0, total, 1))
    return lambda x: scale * filter_(scale * x)


def _features(image, sigma_xy, sigma_rgb):
    """Place and colour of every pixel in standard deviations, float32 [H*W, 5]."""
    h, w, _ = image.shape
    y, x = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")
    place = jnp.stack([x, y], axis=-1).astype(jnp.float32) / sigma_xy
    color = image.astype(jnp.float32) / sigma_rgb
    return jnp.concatenate([place, color], axis=-1).reshape(h * w, 5)


@jax.custom_jvp
def _constant(sigma):
    return sigma


@_constant.defjvp
def _no_derivative(primals, tangents):
    raise ValueError(
        "The lattice has no derivative in sigma_xy and sigma_rgb; take exact=True, or "
        "jax.lax.stop_gradient of them."
    )


def _check_arrays(probabilities, image, valid):
    shape = np.shape(probabilities)
    if len(shape) not in (3, 4) or not jnp.issubdtype(
        probabilities.dtype, jnp.floating
    ):
        raise ValueError(
            f"probabilities are {probabilities.dtype} {list(shape)}; give floating "
            "[H, W, K] or [B, H, W, K], a softmax of logits."
        )
    if image.dtype != np.uint8 or np.shape(image)[-1:] != (3,):
        raise ValueError(
            f"image is {image.dtype} {list(np.shape(image))}; give uint8 RGB, "
            "[..., H, W, 3], as it was before normalisation."
        )
    if np.shape(image)[:-1] != shape[:-1]:
        raise ValueError(
            f"image is {list(np.shape(image))} and probabilities are {list(shape)}; "
            "resize the logits to the image's height and width before the softmax."
        )
    if valid.dtype != bool or np.shape(valid) != shape[:-1]:
        raise ValueError(
            f"valid is {valid.dtype} {list(np.shape(valid))}; give bool "
            f"{list(shape[:-1])}, False where the image is padding."
        )


def _check_parameters(sigma_xy, sigma_rgb, sigma_spatial, iterations):
    if isinstance(sigma_spatial, jax.core.Tracer):
        raise ValueError(
            "sigma_spatial is traced, but decides how far the filter reaches; give a "
            "plain number."
        )
    sigmas = dict(sigma_xy=sigma_xy, sigma_rgb=sigma_rgb, sigma_spatial=sigma_spatial)
    for name, sigma in sigmas.items():
        if not isinstance(sigma, jax.core.Tracer) and not 0 < sigma < math.inf:
            raise ValueError(f"{name} is {sigma}; give a number above 0.")
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}; give at least 0, usually 10.")


def _check_probabilities(probabilities, valid):
    p = np.asarray(probabilities).astype(np.float32)[np.asarray(valid)]
    least = np.min(p, initial=0)
    most_off = np.max(np.abs(p.sum(axis=-1) - 1), initial=0)
    # Written so that NaN fails too. Sums of bfloat16 are off by up to 0.01.
    if not (least >= 0 and most_off <= 0.01):
        raise ValueError(
            f"probabilities go down to {least:.3g} and sums over classes are up to "
            f"{most_off:.3g} off 1; give a softmax of finite logits."
        )
