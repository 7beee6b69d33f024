"""What `reg` may hold: see `base` for the kinds, and `Regularization` for how they reach a run."""

from cifarlab.regularizers.affine import Affine, Flip, Rotate, Shift, Zoom
from cifarlab.regularizers.alternating_flip import AlternatingFlip
from cifarlab.regularizers.base import (
    Averaging,
    DropoutRates,
    EpochTransform,
    Mix,
    Normalization,
    Penalty,
    Regularizer,
    Selection,
    Smoothing,
    StoppingRule,
    Transform,
)
from cifarlab.regularizers.batch_norm import BatchNorm
from cifarlab.regularizers.crop import Crop
from cifarlab.regularizers.cutout import Cutout
from cifarlab.regularizers.dropout import Dropout, DropoutIncreasing
from cifarlab.regularizers.early_stopping import EarlyStopping
from cifarlab.regularizers.hard_examples import HardExamples
from cifarlab.regularizers.label_smoothing import LabelSmoothing
from cifarlab.regularizers.mixing import CutMix, Mixup
from cifarlab.regularizers.penalties import L1, L2, ElasticNet
from cifarlab.regularizers.progressive_resizing import ProgressiveResizing
from cifarlab.regularizers.regularization import Regularization
from cifarlab.regularizers.weight_averaging import WeightAveraging

__all__ = [
    "L1",
    "L2",
    "Affine",
    "AlternatingFlip",
    "Averaging",
    "BatchNorm",
    "Crop",
    "CutMix",
    "Cutout",
    "Dropout",
    "DropoutIncreasing",
    "DropoutRates",
    "EarlyStopping",
    "ElasticNet",
    "EpochTransform",
    "Flip",
    "HardExamples",
    "LabelSmoothing",
    "Mix",
    "Mixup",
    "Normalization",
    "Penalty",
    "ProgressiveResizing",
    "Regularization",
    "Regularizer",
    "Rotate",
    "Selection",
    "Shift",
    "Smoothing",
    "StoppingRule",
    "Transform",
    "WeightAveraging",
    "Zoom",
]
