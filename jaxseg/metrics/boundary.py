"""Boundary F1: how well the outlines of the classes are drawn."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from scipy.spatial import KDTree

from jaxseg.metrics.confusion import check_names
from jaxseg.metrics.per_image import PerImage, nan_mean

TOLERANCE = 0.0075
"""Of the image's diagonal: 4.5 pixels at 360x480."""


class BoundaryF1(PerImage):
    """Boundary pixels of each class in each image, and those that have a counterpart.

    Add up the images, then compute once:

        boundary = BoundaryF1.zeros(num_classes)
        for index, prediction, label in images:
            boundary += BoundaryF1.of(index, prediction, label, num_classes)
        result = boundary.compute(class_names)
    """

    columns = ("truth", "predicted", "matched truth", "matched predicted")

    @classmethod
    def of(
        cls,
        index: int,
        prediction: np.ndarray,
        label: np.ndarray,
        num_classes: int,
        *,
        tolerance: float = TOLERANCE,
        matching: str = "one_to_one",
        ignore_void: bool = False,
        ignore_index: int = 255,
    ) -> "BoundaryF1":
        """That of one image.

        A class's boundary is drawn in its own map, the class against all else, as
        `boundary_pixels` says. With "one_to_one", pixels of the two boundaries no
        further apart than the tolerance are paired, each with one other at most, as
        many pairs as can be. With "nearest", every pixel that has any of the other
        boundary within the tolerance counts as matched, as by a distance transform:
        faster, and an upper bound, for one pixel may serve many.

        SegNet's script pairs by BSDS's correspondPixels, which minimises the distances
        within pairs plus 100 tolerances for every pair that could be and is not. One
        pair more costs less than that, whatever it does to the distances of others
        (short of chains of a hundred of them), so its number of pairs, all that F1
        asks of it, is the largest there is.

        Void in the truth is one more thing that is not the class: where a class meets
        void there is a boundary, and what is predicted inside void counts. This is the
        script's way, and means that a class's outline is looked for where it was
        labelled. With `ignore_void` the prediction is taken to be void where the truth
        is: the score no longer depends on what is predicted there, and the borders of
        void are found by everyone.

        Args:
            index: the record's number.
            prediction: class numbers `[H, W]`.
            label: true class numbers `[H, W]`, `ignore_index` where void.
            num_classes: K.
            tolerance: fraction of the image's diagonal.
            matching: "one_to_one" or "nearest".
            ignore_void: whether predictions on void pixels count for nothing.
            ignore_index: label of the void pixels.

        Raises:
            ValueError: for maps of different shapes or an unknown `matching`.

        Source: SegNet, section 4, and its computeBFmeasure.m; Csurka, Larlus and
            Perronnin, "What is a good evaluation measure for semantic segmentation?",
            BMVC 2013.
        """
        if prediction.shape != label.shape or label.ndim != 2:
            raise ValueError(
                f"a prediction of shape {prediction.shape} does not fit a label of "
                f"shape {label.shape}; both are [H, W]"
            )
        if matching not in _MATCHINGS:
            raise ValueError(
                f"unknown matching {matching!r}; known: {', '.join(_MATCHINGS)}"
            )
        if ignore_void:
            prediction = np.where(label == ignore_index, ignore_index, prediction)
        radius = tolerance * np.hypot(*label.shape)
        counts = np.zeros((num_classes, len(cls.columns)), np.int64)
        for number in np.union1d(prediction, label):
            if not 0 <= number < num_classes or number == ignore_index:
                continue
            truth = boundary_pixels(label == number)
            predicted = boundary_pixels(prediction == number)
            matched = (0, 0)
            if truth.any() and predicted.any():
                matched = _MATCHINGS[matching](_in_reach(truth, predicted, radius))
            counts[number] = truth.sum(), predicted.sum(), *matched
        return cls(np.array([index]), counts[None])

    def f1(self) -> np.ndarray:
        """F1 of each image and class.

            F1 = 2 P R / (P + R),  P = matched / predicted,  R = matched / truth

        Returns:
            float64 `[N, K]`, NaN where neither truth nor prediction has a boundary, 0
            where nothing matches.
        """
        truth, predicted, hit_truth, hit_predicted = np.moveaxis(self.counts, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision, recall = hit_predicted / predicted, hit_truth / truth
            f1 = 2 * precision * recall / (precision + recall)
        return np.where(truth + predicted == 0, np.nan, np.nan_to_num(f1))

    def scores(self, present: str = "either") -> np.ndarray:
        """The score of each image: the mean F1 of the classes that have a boundary.

        Args:
            present: which classes those are: with a boundary in "either" of truth and
                prediction, or in the "truth" only.

        Returns:
            float64 `[N]`, NaN for an image without any boundary.
        """
        return nan_mean(self._counted(present))

    def figures(self, weights: np.ndarray, present: str = "either") -> np.ndarray:
        """Means over the images of each set, of the images' scores and of each F1."""
        by_class = self._counted(present)
        values = np.concatenate([nan_mean(by_class)[:, None], by_class], axis=1)
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            return (weights @ np.where(known, values, 0)) / (weights @ known)

    def compute(self, class_names: Sequence[str], present: str = "either") -> dict:
        """Boundary F1 of the set: the mean of the images' scores.

        Args:
            class_names: K names.
            present: "either", as SegNet's script, or "truth", as its paper's text: the
                classes that count in an image. A class drawn where there is none costs
                the image score in the former and nothing in the latter.

        Returns:
            {"boundary_f1": float in [0, 1], "by_class": {class name: the mean of its F1
            over the images where it counts}}, NaN where there are none. An image
            without any boundary is left out (the script scores it 0).

        Raises:
            ValueError: for names that do not fit the counts or an unknown `present`.
        """
        check_names(class_names, self.num_classes)
        mean, *by_class = self.figures(np.ones((1, len(self.index))), present)[0]
        by_class = dict(zip(class_names, map(float, by_class)))
        return {"boundary_f1": float(mean), "by_class": by_class}

    def _counted(self, present):
        """F1 `[N, K]`, NaN also for classes that are not to count."""
        if present not in ("either", "truth"):
            raise ValueError(f"unknown present {present!r}; known: either, truth")
        f1 = self.f1()
        return f1 if present == "either" else np.where(self.counts[..., 0], f1, np.nan)


def boundary_pixels(region: np.ndarray) -> np.ndarray:
    """Where a region's outline runs, one pixel wide.

    The pixels that do not agree with all of their neighbours to the right, below, and
    right below. The frame of the image is no outline.

    Args:
        region: bool `[H, W]`.

    Returns:
        bool `[H, W]`.

    Source: BSDS's seg2bdry(..., 'imageSize').
    """
    padded = np.pad(region, ((0, 1), (0, 1)), mode="edge")
    right, below, across = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (region != right) | (region != below) | (region != across)


def _in_reach(truth, predicted, radius):
    """Pairs of their pixels, one of each, no further apart than the radius; sparse."""
    truth, predicted = (KDTree(np.argwhere(pixels)) for pixels in (truth, predicted))
    return truth.sparse_distance_matrix(predicted, radius, output_type="coo_matrix")


def _one_to_one(near):
    """The size of a largest one-to-one matching, twice: for truth and prediction.

    As the flow from a source to all of the one, over pairs in reach, to all of the
    other and a sink. SciPy has maximum_bipartite_matching for this, but on ragged
    boundaries its time explodes (a noisy 80x80 map: 16 s against 0.05 s).
    """
    ours, theirs = near.shape
    source, sink = 0, ours + theirs + 1
    of_truth = np.arange(1, ours + 1)
    of_predicted = np.arange(ours + 1, sink)
    start = np.concatenate([np.full(ours, source), near.row + 1, of_predicted])
    end = np.concatenate([of_truth, near.col + ours + 1, np.full(theirs, sink)])
    capacity = np.ones(len(start), np.int32)
    graph = csr_array((capacity, (start, end)), shape=(sink + 1, sink + 1))
    pairs = maximum_flow(graph, source, sink, method="dinic").flow_value
    return pairs, pairs


def _nearest(near):
    """How many pixels of each have one of the other in reach."""
    return len(np.unique(near.row)), len(np.unique(near.col))


_MATCHINGS = {"one_to_one": _one_to_one, "nearest": _nearest}
