"""Which training images train and which validate: the same for every seed, so that runs can be compared."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cifarlab.errors import UserError

Indices = NDArray[np.int64]


def ranks_within_class(labels: Indices) -> NDArray[np.float64]:
    """Each image's place in a fixed shuffle of its class, as a share of the class: float64 (N,) in [0, 1).

    Taking all images below a share takes that share of every class.
    """
    # RandomState's stream is frozen for good, which Generator's is not
    order = np.random.RandomState(0).permutation(len(labels))
    shares = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        shares[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shares


def hold_out(
    labels: Indices,
    validation: Literal["split", "fold"] | float | int,
    how: Literal["stratified", "last"],
    folds: int,
    fold: int,
) -> tuple[Indices, Indices]:
    """Indices of the images that train and of those that validate, each ascending.

    Args:
        labels: int64 (N,).
        validation: `split` for a tenth, a fraction below 1 or a count, or `fold`.
        how: `stratified` takes an equal share of each class, `last` the last images of the file.
        folds, fold: with `fold`, into how many stratified parts, and which of them validates.

    Raises:
        UserError: when nothing is left to train on or to validate with.
    """
    images = len(labels)
    shares = ranks_within_class(labels)
    if validation == "fold":
        held = np.floor(shares * folds) == fold
        if not 0 < held.sum() < images:
            raise UserError(
                f"data.fold={fold} of data.folds={folds} holds out {held.sum()} of {images} training images; "
                "expected at least one, and at least one left to train on."
            )
    else:
        wanted = 0.1 if validation == "split" else validation
        count = int(wanted) if isinstance(wanted, int) else round(wanted * images)
        if not 0 < count < images:
            raise UserError(
                f"data.validation={validation} holds out {count} of {images} training images; expected at "
                "least one, and at least one left to train on."
            )
        held = np.zeros(images, dtype=bool)
        ranked = np.argsort(shares, kind="stable") if how == "stratified" else np.arange(images)[::-1]
        held[ranked[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
