"""The data sets that `data=` names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import interpolate

from cifarlab.data import files
from cifarlab.data.files import DataSet
from cifarlab.data.module import ImageData
from cifarlab.data.splits import hold_out

log = logging.getLogger(__name__)


class CIFAR10(ImageData):
    """50,000 training and 10,000 test images of ten classes (Krizhevsky 2009).

    Args:
        root: the folder that holds the prepared file, the extracted folder or the archive.
        mirrors: where the archive is to be had, tried in this order.
    """

    name = "cifar10"

    def __init__(self, root: str = "data", mirrors: list[str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.root, self.mirrors = Path(root), mirrors or []

    def load(self) -> DataSet:
        return files.load(files.CIFAR10, self.root, self.mirrors, say=log.info)


class CIFAR100(ImageData):
    """50,000 training and 10,000 test images of 100 classes in 20 superclasses (Krizhevsky 2009).

    Args:
        root, mirrors: as for CIFAR-10.
        labels: `fine` for the 100 classes, `coarse` for the 20 superclasses.
    """

    name = "cifar100"

    def __init__(
        self,
        root: str = "data",
        mirrors: list[str] | None = None,
        labels: Literal["fine", "coarse"] = "fine",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root, self.mirrors, self.labels = Path(root), mirrors or [], labels

    def load(self) -> DataSet:
        loaded = files.load(files.CIFAR100, self.root, self.mirrors, say=log.info)
        return loaded if self.labels == "fine" else loaded.with_coarse_labels()


class Digits(ImageData):
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey, enlarged to 32 x 32 RGB; a fixed fifth tests.

    Ships inside scikit-learn, so it needs no download: for demonstrations and tests.
    """

    name = "digits"

    def load(self) -> DataSet:
        from sklearn.datasets import load_digits  # only here: it takes a second to import

        digits = load_digits()
        grey = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
        large = interpolate(grey, size=(32, 32), mode="bilinear", align_corners=False).round().to(torch.uint8)
        images, labels = large.repeat(1, 3, 1, 1), digits.target.astype(np.int64)
        train, test = hold_out(labels, 0.2, "stratified", 5, 0)
        return DataSet(
            train_images=images[train],
            train_labels=torch.from_numpy(labels[train]),
            test_images=images[test],
            test_labels=torch.from_numpy(labels[test]),
            classes=[str(digit) for digit in range(10)],
        )
