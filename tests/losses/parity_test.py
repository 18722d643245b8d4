"""Equality with independent implementations in PyTorch, in value and in gradient.

`benchmarks/losses.py` compares with the libraries themselves.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import losses

torch = pytest.importorskip("torch")
F = torch.nn.functional
CLASSES, VOID = 4, 255


@pytest.fixture(scope="module")
def data():
    """Logits and labels of 2 images, without void, in which all classes occur."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(2, 9, 12, CLASSES)).astype(np.float32)
    label = rng.integers(0, CLASSES, logits.shape[:-1])
    label[0, 2:7, 3:9] = 1
    return logits, label


def one_hot(y, valid):
    target = F.one_hot(torch.where(valid, y, 0), CLASSES)
    return (target * valid[..., None]).double()


def tversky(alpha, beta, dims, finish=lambda index: 1 - index, power=1):
    def loss(x, y):
        valid = y != VOID
        p, g = x.softmax(-1) * valid[..., None], one_hot(y, valid)
        common = (p * g).sum(dims)
        false_positives = (p**power).sum(dims) - common
        false_negatives = g.sum(dims) - common
        total = common + alpha * false_positives + beta * false_negatives
        return finish(common / total).mean()

    return loss


def generalized(x, y):
    valid = y != VOID
    p, g = x.softmax(-1) * valid[..., None], one_hot(y, valid)
    weights = 1 / g.sum((1, 2)) ** 2
    common = (weights * (p * g).sum((1, 2))).sum(1)
    return (1 - 2 * common / (weights * (p + g).sum((1, 2))).sum(1)).mean()


def nll(x, y):
    return F.cross_entropy(x.movedim(-1, 1), y, ignore_index=VOID, reduction="none")[
        y != VOID
    ]


def focal(x, y):
    return ((1 - (-nll(x, y)).exp()) ** 1.5 * nll(x, y)).mean()


def hard(x, y):
    values = nll(x, y)
    ranked = values.sort(descending=True).values
    least = ranked[-(-len(values) // 4) - 1]
    return values[(values >= least) | ((-values).exp() < 0.2)].mean()


def lovasz(x, y):
    valid, found = y != VOID, []
    for k in range(CLASSES):
        p, g = x.softmax(-1)[valid][:, k], (y[valid] == k).double()
        errors, order = (g - p).abs().sort(descending=True)
        common, count = g.sum() - g[order].cumsum(0), g.sum()
        jaccard = 1 - common / (count + (1 - g[order]).cumsum(0))
        found.append(errors @ torch.diff(jaccard, prepend=torch.zeros(1).double()))
    return torch.stack(found).mean()


def boundary(x, y):
    """Distances between all pairs of pixels."""
    valid = y != VOID
    places = torch.cartesian_prod(*(torch.arange(n) for n in y.shape[1:])).double()
    far = torch.cdist(places, places)
    phi = torch.zeros(x.shape).double()
    for b, k in np.ndindex(len(y), CLASSES):
        inside, known = (y[b] == k).flatten(), valid[b].flatten()
        out = far[:, inside].min(1).values
        into = 1 - far[:, known & ~inside].min(1).values
        phi[b, ..., k] = torch.where(inside, into, out).reshape(y[b].shape)
    phi *= valid[..., None]
    return (x.softmax(-1) * phi).sum() / valid.sum() / CLASSES


def cl_dice(x, y):
    """Without void."""

    def erode(m):
        return -torch.max(
            F.max_pool2d(-m, (3, 1), 1, (1, 0)), F.max_pool2d(-m, (1, 3), 1, (0, 1))
        )

    def skeleton(m):
        found = torch.zeros_like(m)
        for _ in range(3):
            ridge = F.relu(m - F.max_pool2d(erode(m), 3, 1, 1))
            found = found + F.relu(ridge - found * ridge)
            m = erode(m)
        return found

    p, g = (t.movedim(-1, 1) for t in (x.softmax(-1), one_hot(y, y != VOID)))
    a, b = skeleton(p), skeleton(g)
    precision = ((a * g).sum((2, 3)) + 1) / (a.sum((2, 3)) + 1)
    recall = ((b * p).sum((2, 3)) + 1) / (b.sum((2, 3)) + 1)
    return (1 - 2 * precision * recall / (precision + recall)).mean()


IMAGE, BATCH = (1, 2), (0, 1, 2)


@pytest.mark.parametrize(
    ("name", "kwargs", "reference"),
    [
        ("dice", {}, tversky(0.5, 0.5, IMAGE)),
        ("dice", {"per": "batch"}, tversky(0.5, 0.5, BATCH)),
        ("dice", {"squared": True}, tversky(0.5, 0.5, IMAGE, power=2)),
        ("jaccard", {}, tversky(1, 1, IMAGE)),
        ("tversky", {"alpha": 0.2, "beta": 0.9}, tversky(0.2, 0.9, IMAGE)),
        (
            "focal_tversky",
            {"per": "batch"},
            tversky(0.3, 0.7, BATCH, lambda index: (1 - index) ** 0.75),
        ),
        (
            "log_cosh_dice",
            {},
            tversky(0.5, 0.5, IMAGE, lambda index: torch.log(torch.cosh(1 - index))),
        ),
        ("generalized_dice", {}, generalized),
        ("focal", {"gamma": 1.5}, focal),
        ("ohem_cross_entropy", {"threshold": 0.2, "min_fraction": 0.25}, hard),
        ("lovasz_softmax", {"per": "batch"}, lovasz),
        ("boundary", {}, boundary),
        ("cl_dice", {"iterations": 2}, cl_dice),
    ],
)
def test_equals_pytorch(data, name, kwargs, reference):
    logits, label = data
    if name != "cl_dice":
        label = label.copy()
        label[1, :3] = VOID
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    expected = reference(x, torch.tensor(label))
    expected.backward()
    value, gradient = jax.jit(
        jax.value_and_grad(
            lambda x: losses.divide(
                *losses.LOSSES[name](x, jnp.asarray(label), **kwargs)
            )
        )
    )(logits)
    np.testing.assert_allclose(value, expected.item(), rtol=2e-6)
    scale = x.grad.abs().max().item()
    np.testing.assert_allclose(gradient / scale, x.grad / scale, atol=5e-6)
