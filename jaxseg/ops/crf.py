"""Mean-field inference in a fully connected CRF with Gaussian edge potentials."""

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxseg.ops import gaussian, permutohedral
from jaxseg.ops.probabilities import log_probabilities
from jaxseg.utils.rounding import round_up


def _preset(**parameters: float) -> Mapping[str, float]:
    return MappingProxyType(parameters)


PRESETS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "deeplab": _preset(
            w_bilateral=5.0,
            sigma_xy=50.0,
            sigma_rgb=10.0,
            w_spatial=3.0,
            sigma_spatial=3.0,
        ),
        "deeplab_v2": _preset(
            w_bilateral=4.0,
            sigma_xy=67.0,
            sigma_rgb=3.0,
            w_spatial=3.0,
            sigma_spatial=1.0,
        ),
        "deconvnet": _preset(
            w_bilateral=5.0,
            sigma_xy=20.0,
            sigma_rgb=3.0,
            w_spatial=3.0,
            sigma_spatial=3.0,
        ),
    }
)
"""Keyword arguments of `dense_crf`, for 10 iterations on PASCAL VOC: DeepLab v1 on VGG16
(official `SetupEnv.m`), DeepLab v2 on ResNet-101 (the deeplab-pytorch config), and
DeconvNet (official `generate_EDeconvNet_CRF_results.m`)."""

FLOOR = 1e-5
"""Smaller probabilities are replaced by this one, as in pydensecrf, so that no class is
impossible."""


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
    """Refines class probabilities so that nearby pixels of similar color agree.

    Mean-field inference for unary terms -log p, Potts compatibility and the kernels

        k_b(i, j) = exp(-|xy_i - xy_j|^2 / (2 sigma_xy^2)
                        - |rgb_i - rgb_j|^2 / (2 sigma_rgb^2))
        k_s(i, j) = exp(-|xy_i - xy_j|^2 / (2 sigma_spatial^2))

    Starting at q = p, all pixels are updated at once, `iterations` times:

        q_i <- softmax(log p_i + w_bilateral * sum_j k_b'(i, j) q_j
                               + w_spatial * sum_j k_s'(i, j) q_j)

    where k' is k normalized symmetrically, k'(i, j) = k(i, j) / sqrt(n_i n_j) with
    n_i = sum_j k(i, j), and the sums include j = i. These are pydensecrf's defaults.

    The spatial filter is exact up to float32. The bilateral filter uses the
    permutohedral lattice (`permutohedral`), as the reference implementation does: its
    messages are off by 3 to 7 %, and after 10 iterations on the probabilities of a
    trained model 0.5 to 2 % of the pixels get another class than with the exact kernel
    (measured by `benchmarks/crf.py`). `exact=True` sums over all pairs of pixels: for
    small images, or on an accelerator.

    The function is pure and already jitted: it compiles once per shape,
    `sigma_spatial`, `iterations` and `exact`; all other arguments may be traced.
    Gradients flow to the probabilities and both weights, and with `exact` also to
    `sigma_xy` and `sigma_rgb`; the lattice raises an error for these two. Under an
    outer `jit` only shapes and dtypes are checked, since values are unknown. Pass
    several images by a leading axis rather than by `vmap`: they are processed one by
    one, so that each costs no more than its own number of colors requires.

    Args:
        probabilities: class probabilities, [H, W, K] or [B, H, W, K], floating, which
            sum to 1 over the classes. Those below 1e-5 are replaced by 1e-5.
        image: RGB in [0, 255], not normalized, uint8 [H, W, 3] or [B, H, W, 3].
        w_bilateral: weight of the bilateral kernel.
        sigma_xy: standard deviation of the bilateral kernel in position, in pixels.
        sigma_rgb: standard deviation of the bilateral kernel in color, in gray levels.
        w_spatial: weight of the spatial kernel.
        sigma_spatial: standard deviation of the spatial kernel, in pixels; not traced.
        iterations: number of mean-field updates; 0 returns the probabilities.
        valid: bool [H, W] or [B, H, W], False for padding, which does not influence
            the other pixels. All pixels are valid by default.
        exact: whether to sum the bilateral kernel over all pairs of pixels, in
            O((H*W)^2) time and O(H*W) memory.

    Returns:
        Probabilities, float32, in the shape of `probabilities`. They are undefined in
        the padding.

    Raises:
        ValueError: if a shape or dtype is wrong or empty, `probabilities` are not
            probabilities, a weight is not finite, a standard deviation is not positive, or `sigma_spatial` is
            traced.

    Source: Krähenbühl and Koltun, Efficient inference in fully connected CRFs with
    Gaussian edge potentials, NIPS 2011, https://arxiv.org/abs/1210.5644.
    """
    mask = np.ones(np.shape(image)[:-1], bool) if valid is None else valid
    _check_arrays(probabilities, image, mask)
    weights = {"w_bilateral": w_bilateral, "w_spatial": w_spatial}
    _check_parameters(sigma_xy, sigma_rgb, sigma_spatial, iterations, weights)
    if not any(isinstance(x, Tracer) for x in (probabilities, mask)):
        _check_probabilities(probabilities, mask)
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
    return infer(probabilities, image, mask)


def pad_to_multiple(
    probabilities: np.ndarray, image: np.ndarray, multiple: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pads at the bottom and right, so that one program serves images of many sizes.

        padded, image, valid = pad_to_multiple(probabilities, image, 64)
        q = dense_crf(padded, image, valid=valid, **PRESETS["deeplab"])[:h, :w]

    Args:
        probabilities: [H, W, K].
        image: [H, W, 3].
        multiple: height and width are padded to a multiple of this, in pixels.

    Returns:
        The padded probabilities and image, and a mask for the argument `valid` of
        `dense_crf`, bool, False in the padding.

    Raises:
        ValueError: if the multiple is below 1, or an axis is empty.
    """
    if multiple < 1 or 0 in probabilities.shape:
        raise ValueError(
            f"multiple is {multiple} and probabilities are {list(probabilities.shape)}; "
            "a multiple must be at least 1, and no axis may be empty."
        )
    h, w = image.shape[:2]
    margins = tuple((0, round_up(n, multiple) - n) for n in (h, w))
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
    log_p = log_probabilities(probabilities.astype(jnp.float32), FLOOR)
    # Removes the padding, which may be NaN.
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
    """The filter with its kernel normalized symmetrically over the valid pixels."""
    valid = valid[:, None].astype(jnp.float32)
    # The sum includes the pixel itself, so it is 0 only in the padding.
    total = filter_(valid)
    scale = valid * lax.rsqrt(jnp.where(total > 0, total, 1))
    return lambda x: scale * filter_(scale * x)


def _features(image, sigma_xy, sigma_rgb):
    """Position and color of every pixel in standard deviations, float32 [H*W, 5]."""
    h, w, _ = image.shape
    y, x = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")
    position = jnp.stack([x, y], axis=-1).astype(jnp.float32) / sigma_xy
    color = image.astype(jnp.float32) / sigma_rgb
    return jnp.concatenate([position, color], axis=-1).reshape(h * w, 5)


@jax.custom_jvp
def _constant(sigma):
    return sigma


@_constant.defjvp
def _no_derivative(primals, tangents):
    raise ValueError(
        "The lattice has no derivative with respect to sigma_xy and sigma_rgb; use "
        "exact=True, or apply jax.lax.stop_gradient to them."
    )


def _check_arrays(probabilities, image, valid):
    shape = np.shape(probabilities)
    if len(shape) not in (3, 4) or not jnp.issubdtype(
        probabilities.dtype, jnp.floating
    ):
        raise ValueError(
            f"probabilities are {probabilities.dtype} {list(shape)}; expected floating "
            "[H, W, K] or [B, H, W, K], such as a softmax of logits."
        )
    if 0 in shape:
        raise ValueError(
            f"probabilities are {list(shape)}; there must be at least one pixel, one "
            "class and one image."
        )
    if image.dtype != np.uint8 or np.shape(image)[-1:] != (3,):
        raise ValueError(
            f"image is {image.dtype} {list(np.shape(image))}; expected uint8 RGB "
            "[..., H, W, 3], not normalized."
        )
    if np.shape(image)[:-1] != shape[:-1]:
        raise ValueError(
            f"image is {list(np.shape(image))} and probabilities are {list(shape)}; "
            "resize the logits to the image's height and width before the softmax."
        )
    if valid.dtype != bool or np.shape(valid) != shape[:-1]:
        raise ValueError(
            f"valid is {valid.dtype} {list(np.shape(valid))}; expected bool "
            f"{list(shape[:-1])}, False in the padding."
        )


def _check_parameters(sigma_xy, sigma_rgb, sigma_spatial, iterations, weights):
    for name, weight in weights.items():
        if not isinstance(weight, Tracer) and not np.all(np.isfinite(weight)):
            raise ValueError(f"{name} is {weight}; it must be finite.")
    if isinstance(sigma_spatial, Tracer):
        raise ValueError(
            "sigma_spatial is traced, but it sets the size of the filter; pass a "
            "Python number."
        )
    sigmas = dict(sigma_xy=sigma_xy, sigma_rgb=sigma_rgb, sigma_spatial=sigma_spatial)
    for name, sigma in sigmas.items():
        if not isinstance(sigma, Tracer) and not 0 < sigma < math.inf:
            raise ValueError(f"{name} is {sigma}; it must be positive.")
    if not isinstance(iterations, int) or iterations < 0:
        raise ValueError(
            f"iterations is {iterations}; it must be an integer from 0, usually 10."
        )


def _check_probabilities(probabilities, valid):
    p = np.asarray(probabilities).astype(np.float32)[np.asarray(valid)]
    smallest = np.min(p, initial=0)
    error = np.max(np.abs(p.sum(axis=-1) - 1), initial=0)
    # Written so that NaN fails too. Sums of bfloat16 are off by up to 0.01.
    if not (smallest >= 0 and error <= 0.01):
        raise ValueError(
            f"the smallest probability is {smallest:.3g}, and sums over the classes "
            f"differ from 1 by up to {error:.3g}; pass a softmax of finite logits."
        )
