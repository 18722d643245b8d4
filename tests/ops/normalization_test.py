"""Local response normalization by hand and against PyTorch."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops.normalization import local_response_norm


def test_three_channels_by_hand():
    # The window of five sees all three channels: energy 1 + 4 + 16 = 21.
    y = local_response_norm(jnp.array([[1.0, 2.0, 4.0]]), 5, alpha=5.0, beta=1.0, k=1.0)
    np.testing.assert_allclose(y, np.array([[1.0, 2.0, 4.0]]) / 22, rtol=1e-6)


def test_equals_pytorch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).uniform(0, 255, (2, 5, 6, 7)).astype(np.float32)
    expected = torch.nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)(
        torch.tensor(x.transpose(0, 3, 1, 2))
    )
    np.testing.assert_allclose(
        local_response_norm(jnp.asarray(x)),
        expected.numpy().transpose(0, 2, 3, 1),
        rtol=1e-5,
    )


def test_even_windows_are_refused():
    with pytest.raises(ValueError, match="odd number"):
        local_response_norm(jnp.zeros((1, 3)), 4)
