"""Initialisation of networks: the first network, with one hidden layer, and the layers inserted during training.

Source: ``steps/nnet2/make_multisplice_configs.py``, ``nnet-init`` and ``nnet-insert`` of Kaldi.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ngsgd.errors import ConfigError
from ngsgd.network import components as c
from ngsgd.network.affine import Affine
from ngsgd.network.model import AcousticModel
from ngsgd.network.splices import Splices

BIAS_STDDEV = 0.5  # of a hidden layer's biases
NEW_OUTPUT_STDDEV = 0.1  # of the output layer above an inserted layer, times the square root of its input dimension
PRIOR_SCALE_POWER = -0.25
PRIOR_SMOOTHING = 0.01  # of the mean count, added to the count of each class

Nonlinearity = Literal["pnorm", "relu", "tanh", "sigmoid"]


@dataclass(frozen=True)
class HiddenLayers:
    """Configuration of a network's hidden layers.

    Attributes:
        splices: of layer 0, 1, ...; see `parse_splice_indexes`.
        nonlinearity: "pnorm" maps affine_dim to output_dim; the others keep the dimension.
        affine_dim: output dimension of a layer's affine component.
        output_dim: output dimension of a layer.
        batchnorm: whether to use batch normalisation instead of scaling to root-mean-square 1.
    """

    splices: Splices
    nonlinearity: Nonlinearity
    affine_dim: int
    output_dim: int
    batchnorm: bool

    def make(self, layer: int, input_dim: int, generator: torch.Generator) -> list[tuple[str, c.Component | Affine]]:
        """Makes hidden layer ``layer`` for ``input_dim`` inputs: [splice,] affine, nonlinearity, normalisation."""
        named: list[tuple[str, c.Component | Affine]] = []
        offsets = self.splices[layer] if 0 < layer < len(self.splices) else None
        if offsets is not None:
            named.append((f"splice{layer}", c.Splice(input_dim, offsets)))
            input_dim *= len(offsets)
        affine = Affine(input_dim, self.affine_dim)
        _draw(affine.weight, self.affine_dim**-0.5, generator)
        _draw(affine.bias, BIAS_STDDEV, generator)
        named.append((f"affine{layer}", affine))
        named.append((f"{self.nonlinearity}{layer}", self._nonlinearity()))
        norm = c.BatchNorm(self.output_dim) if self.batchnorm else c.Normalize(self.output_dim)
        named.append((f"{norm.kind}{layer}", norm))
        return named

    def _nonlinearity(self) -> c.Component:
        if self.nonlinearity == "pnorm":
            return c.PNorm(self.affine_dim, self.output_dim)
        return {"relu": c.ReLU, "tanh": c.Tanh, "sigmoid": c.Sigmoid}[self.nonlinearity](self.affine_dim)


def initial_model(
    layers: HiddenLayers,
    transform: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    class_counts: npt.NDArray[np.int64],
    seed: int,
    const_dim: int = 0,
) -> AcousticModel:
    """Makes the network before the first iteration: splice, transform, one hidden layer, an output layer of zeros.

    Args:
        layers: configuration of the hidden layers.
        transform: weight (D', K (D - c) + c) and bias (D') of the feature transform above the K spliced frames.
        class_counts: (C,) frames of each class in the training data.
        seed: of the random parameters.
        const_dim: c, how many of the last of the features' D dimensions are appended instead of spliced.

    Raises:
        ConfigError: the transform's input dimension does not match the number of spliced frames.
    """
    generator = torch.Generator().manual_seed(seed)
    weight, bias = transform
    offsets = layers.splices[0]
    assert offsets is not None
    if (weight.shape[1] - const_dim) % len(offsets):
        raise ConfigError(
            f"the feature transform takes {weight.shape[1]} dimensions, layer0 splices {len(offsets)} frames"
        )
    lda = c.FixedAffine(weight.shape[1], weight.shape[0])
    lda.weight.copy_(torch.from_numpy(weight))
    lda.bias.copy_(torch.from_numpy(bias))
    num_classes = len(class_counts)
    scale = c.FixedScale(num_classes)
    scale.scales.copy_(torch.from_numpy(output_scales(class_counts)))
    return AcousticModel(
        [
            ("splice0", c.Splice((weight.shape[1] - const_dim) // len(offsets) + const_dim, offsets, const_dim)),
            ("lda", lda),
            *layers.make(0, lda.output_dim, generator),
            ("output_affine", Affine(layers.output_dim, num_classes)),
            ("output_scale", scale),
            ("softmax", c.Softmax(num_classes)),
        ]
    )


def output_scales(class_counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Returns the fixed scales (C,) below the softmax: prior^-0.25, with mean 1.

    Source: ``get_lda_block``'s presoftmax prior scale.
    """
    counts = class_counts.astype(np.float64)
    priors = counts + PRIOR_SMOOTHING * counts.mean()
    scales = (priors / priors.sum()) ** PRIOR_SCALE_POWER
    normalized: npt.NDArray[np.float64] = scales / scales.mean()
    return normalized


def insert_hidden_layer(model: AcousticModel, layers: HiddenLayers, seed: int) -> AcousticModel:
    """Inserts a hidden layer below the output layer, and initialises both at random."""
    generator = torch.Generator().manual_seed(seed)
    named = list(zip(model.components.keys(), model.chain(), strict=True))
    output = next(i for i, (name, _) in enumerate(named) if name == "output_affine")
    num_hidden = sum(isinstance(component, Affine) for _, component in named) - 1
    hidden = layers.make(num_hidden, named[output - 1][1].output_dim, generator)
    affine = Affine(layers.output_dim, model.num_classes)
    stddev = NEW_OUTPUT_STDDEV * affine.input_dim**-0.5
    _draw(affine.weight, stddev, generator)
    _draw(affine.bias, stddev, generator)
    return AcousticModel([*named[:output], *hidden, ("output_affine", affine), *named[output + 1 :]], model.history)


@torch.no_grad()
def _draw(parameter: Tensor, stddev: float, generator: torch.Generator) -> None:
    parameter.normal_(0.0, stddev, generator=generator)
