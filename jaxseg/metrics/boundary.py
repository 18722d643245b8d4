"""Boundary F1: the accuracy of the outlines of the classes."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from scipy.spatial import KDTree

from jaxseg.metrics.confusion import check_maps, check_names, check_num_classes
from jaxseg.metrics.per_image import PerImage, nan_mean

TOLERANCE = 0.0075
"""Fraction of the image's diagonal: 4.5 pixels at 360x480."""


class BoundaryF1(PerImage):
    """Numbers of boundary pixels, and of matched ones, of each image and class.

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
        """The counts of one image.

        The boundary of a class is that of its binary map; see `boundary_pixels`. With
        "one_to_one", pixels of the two boundaries within the tolerance are paired, each
        with at most one other, as many pairs as possible. With "nearest", every pixel
        with any pixel of the other boundary within the tolerance is matched, as by a
        distance transform. That is faster, and an upper bound, since one pixel may
        match many.

        SegNet's script pairs with BSDS's correspondPixels, which minimizes the sum of
        the distances within pairs plus 100 tolerances for every pixel without a pair.
        One more pair always costs less than that (except for chains of a hundred
        pixels), so its number of pairs, all that F1 depends on, is the maximum.

        Void in the truth is treated as another class: where a class meets void there is
        a boundary, and predictions inside void count. This is what the script does. The
        outline of a class is thus expected where it was labeled. With `ignore_void`
        the prediction is replaced by void where the truth is void: the score no longer
        depends on the prediction there, and boundaries with void are always matched.

        Args:
            index: number of the record.
            prediction: predicted classes, integers [H, W].
            label: true classes, integers [H, W], `ignore_index` for void.
            num_classes: K.
            tolerance: fraction of the image's diagonal.
            matching: "one_to_one" or "nearest".
            ignore_void: whether to ignore predictions on void pixels.
            ignore_index: label of the void pixels.

        Returns:
            The counts of this image.

        Raises:
            ValueError: if the maps are not integers [H, W], `matching` is unknown, or a
                number is out of range.

        Source: SegNet, section 4, and its computeBFmeasure.m; Csurka, Larlus and
            Perronnin, "What is a good evaluation measure for semantic segmentation?",
            BMVC 2013.
        """
        check_num_classes(num_classes)
        check_maps(prediction, label)
        if label.ndim != 2:
            raise ValueError(f"label has shape {label.shape}; expected [H, W]")
        if matching not in _MATCHINGS:
            raise ValueError(
                f"unknown matching {matching!r}; known: {', '.join(_MATCHINGS)}"
            )
        if not 0 <= tolerance < np.inf:
            raise ValueError(f"tolerance is {tolerance}; it must be at least 0")
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
            float64 [N, K]; NaN if neither truth nor prediction has a boundary, 0 if
            nothing matches.
        """
        truth, predicted, hit_truth, hit_predicted = np.moveaxis(self.counts, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision, recall = hit_predicted / predicted, hit_truth / truth
            f1 = 2 * precision * recall / (precision + recall)
        return np.where(truth + predicted == 0, np.nan, np.nan_to_num(f1))

    def scores(self, present: str = "either") -> np.ndarray:
        """The score of each image: the mean F1 of the classes that have a boundary.

        Args:
            present: which classes to average: those with a boundary in the truth or the
                prediction ("either"), or in the truth ("truth").

        Returns:
            float64 [N]; NaN for an image without any boundary.
        """
        return nan_mean(self._counted(present))

    def figures(self, weights: np.ndarray, present: str = "either") -> np.ndarray:
        """Means over each set of images: of the images' scores, and of each class's F1.

        Args:
            weights: [R, N], the number of times that each image is in each of R sets.
            present: see `scores`.

        Returns:
            float64 [R, 1 + K], the mean of the images' scores first.
        """
        by_class = self._counted(present)
        values = np.concatenate([nan_mean(by_class)[:, None], by_class], axis=1)
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            return (weights @ np.where(known, values, 0)) / (weights @ known)

    def compute(self, class_names: Sequence[str], present: str = "either") -> dict:
        """Boundary F1 of the set: the mean of the images' scores.

        Args:
            class_names: K names.
            present: see `scores`: "either", as in SegNet's script, or "truth", as in
                its paper. A class that is predicted but absent from the image lowers
                the image's score with "either", but not with "truth".

        Returns:
            {"boundary_f1": float in [0, 1], "by_class": {class name: mean F1 over the
            images in which the class is present}}, NaN if there are none. Images
            without any boundary are left out (the script scores them 0).

        Raises:
            ValueError: if the names do not match the counts, or `present` is unknown.
        """
        check_names(class_names, self.num_classes)
        mean, *by_class = self.figures(np.ones((1, len(self.index))), present)[0]
        by_class = dict(zip(class_names, map(float, by_class)))
        return {"boundary_f1": float(mean), "by_class": by_class}

    def _counted(self, present):
        """F1 [N, K], with NaN for the classes that are not to be averaged."""
        if present not in ("either", "truth"):
            raise ValueError(f"unknown present {present!r}; known: either, truth")
        f1 = self.f1()
        return f1 if present == "either" else np.where(self.counts[..., 0], f1, np.nan)


def boundary_pixels(region: np.ndarray) -> np.ndarray:
    """The outline of a region, one pixel wide.

    These are the pixels that differ from their neighbor to the right, below, or
    diagonally below to the right. The image border is not an outline.

    Args:
        region: bool [H, W].

    Returns:
        bool [H, W].

    Source: BSDS's seg2bdry(..., 'imageSize').
    """
    padded = np.pad(region, ((0, 1), (0, 1)), mode="edge")
    right, below, across = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (region != right) | (region != below) | (region != across)


def _in_reach(truth, predicted, radius):
    """All pairs of a true and a predicted pixel within the radius; a sparse matrix."""
    truth, predicted = (KDTree(np.argwhere(pixels)) for pixels in (truth, predicted))
    return truth.sparse_distance_matrix(predicted, radius, output_type="coo_matrix")


def _one_to_one(near):
    """The size of a maximum one-to-one matching, once for truth and for prediction.

    Computed as a maximum flow from a source through the true pixels, the pairs and the
    predicted pixels to a sink. SciPy's maximum_bipartite_matching would do this, but is
    very slow on ragged boundaries (16 s instead of 0.05 s on a noisy 80x80 map).
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
    """The number of pixels of each boundary that are close to the other."""
    return len(np.unique(near.row)), len(np.unique(near.col))


_MATCHINGS = {"one_to_one": _one_to_one, "nearest": _nearest}
