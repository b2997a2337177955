"""What the server's answers become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ._errors import ImageRejectedError
from ._tensors import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Level = Literal["c1", "c2", "c3", "c4", "c5", "embedding"]
Fit = Literal["crop", "letterbox", "stretch"]
Cut = Literal["deepest", "timm"]
DType = Literal["f32", "f16"]
#: Left, top, right, bottom.
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class ModelReference:
    """The model that answered."""

    id: str
    #: `sha256:…` of the network.
    digest: str


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A model that the server serves."""

    id: str
    architecture: str
    digest: str
    #: The number of classes.
    classes: int
    #: Whether requests that name no model get this one.
    default: bool
    description: str | None


@dataclass(frozen=True, slots=True)
class ModelDetails(ModelSummary):
    """A served model with its labels and everything else that the server says about it."""

    #: The label of each class.
    labels: tuple[str, ...]
    #: Height and width of the network's input in pixels.
    input_size: tuple[int, int]
    #: The whole answer of `GET /v1/models/{id}`: pre-processing, levels, attention's layers, how it runs.
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A class and its probability."""

    #: Index of the network's output.
    class_index: int
    label: str
    #: Between 0 and 1.
    probability: float
    #: The WordNet id of the class, if the model has one: `n02123045`.
    wnid: str | None = None


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the server found the image to be."""

    #: `jpeg`, `png`, `webp`, `gif`, `bmp` or `tiff`.
    format: str
    #: Width in pixels, upright.
    width: int
    #: Height in pixels, upright.
    height: int


@dataclass(frozen=True, slots=True)
class ImageError:
    """Why the server could not answer for one of several images."""

    #: Stable name of the reason, such as `undecodable_image`.
    code: str
    #: Text for people: the error, and what to do.
    detail: str


@dataclass(frozen=True, slots=True)
class Result:
    """The predictions for one image, most probable first."""

    predictions: tuple[Prediction, ...]
    image: ImageInfo

    @property
    def top(self) -> Prediction:
        """The most probable class. Raises `IndexError` if none reached `min_confidence`."""
        return self.predictions[0]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the photograph lies in the network's input: `input = photograph * scale + offset`, for x and y.

    Coordinates are pixels from the upper left edge.
    """

    fit: str
    #: Width of the network's input in pixels.
    width: int
    #: Height of the network's input in pixels.
    height: int
    #: Pixels of the input per pixel of the photograph: x, y.
    scale: tuple[float, float]
    #: Position of the photograph's upper left corner in the input: x, y.
    offset: tuple[float, float]
    #: The part of the photograph that the network sees.
    visible: Box
    #: Width of the border around the photograph, in pixels of the input: left, top, right, bottom.
    padding: tuple[int, int, int, int]

    def to_photo(self, box: Box, stride: float = 1) -> Box:
        """A box on a map of this stride in pixels of the photograph. Stride 1 is the network's input."""
        (sx, sy), (ox, oy) = self.scale, self.offset
        left, top, right, bottom = (edge * stride for edge in box)
        return ((left - ox) / sx, (top - oy) / sy, (right - ox) / sx, (bottom - oy) / sy)

    def to_input(self, box: Box, stride: float = 1) -> Box:
        """A box in pixels of the photograph on a map of this stride: the inverse of `to_photo`."""
        (sx, sy), (ox, oy) = self.scale, self.offset
        left, top, right, bottom = box
        return (
            (left * sx + ox) / stride,
            (top * sy + oy) / stride,
            (right * sx + ox) / stride,
            (bottom * sy + oy) / stride,
        )


@dataclass(frozen=True, slots=True)
class FeatureResult:
    """The feature maps of one image."""

    image: ImageInfo
    geometry: Geometry
    #: The tensors of this image by level: channels, height and width; the embedding has one dimension.
    maps: Mapping[str, Tensor]
    #: Pixels of the input per cell, by level.
    strides: Mapping[str, int]
    #: Empty unless the request had `top_k` or `min_confidence`.
    predictions: tuple[Prediction, ...]

    @property
    def arrays(self) -> dict[str, NDArray[np.floating[Any]]]:
        """`maps` as NumPy arrays."""
        return {name: tensor.numpy() for name, tensor in self.maps.items()}


@dataclass(frozen=True, slots=True)
class _Answer:
    """What every answer about images has."""

    model: ModelReference
    #: Milliseconds by stage, from `Server-Timing`: read, decode, resize, queue, infer, encode.
    timings: Mapping[str, float]
    #: The request's id, which is also in the server's log.
    request_id: str


def _only(results: tuple[Any, ...], request_id: str) -> Any:
    if len(results) != 1:
        raise ValueError(f"the request had {len(results)} images; iterate over `results`")
    return _checked(results[0], request_id)


def _checked(result: Any, request_id: str) -> Any:
    if isinstance(result, ImageError):
        raise ImageRejectedError(200, result.code, result.detail, request_id)
    return result


@dataclass(frozen=True, slots=True)
class Classification(_Answer):
    """The answer to `classify`."""

    #: One entry per image, in order.
    results: tuple[Result | ImageError, ...]

    @property
    def result(self) -> Result:
        """The result of the only image. Raises `ValueError` if there were several."""
        result: Result = _only(self.results, self.request_id)
        return result


@dataclass(frozen=True, slots=True)
class Features(_Answer):
    """The answer to `features`."""

    #: One entry per image, in order.
    results: tuple[FeatureResult | ImageError, ...]
    #: The tensors of all images by level, first dimension: the images without an error.
    maps: Mapping[str, Tensor]
    #: Pixels of the input per cell, by level.
    strides: Mapping[str, int]

    @property
    def result(self) -> FeatureResult:
        """The result of the only image. Raises `ValueError` if there were several."""
        result: FeatureResult = _only(self.results, self.request_id)
        return result

    @property
    def arrays(self) -> dict[str, NDArray[np.floating[Any]]]:
        """`maps` as NumPy arrays."""
        return {name: tensor.numpy() for name, tensor in self.maps.items()}


@dataclass(frozen=True, slots=True)
class Attention(_Answer):
    """The answer to `attention`: the gate of a bottleneck's DFC attention for one image."""

    image: ImageInfo
    geometry: Geometry
    #: Channels, height, width; values between 0 and 1.
    gate: Tensor
    #: Pixels of the input per cell of the gate.
    stride: int

    @property
    def array(self) -> NDArray[np.floating[Any]]:
        """`gate` as a NumPy array."""
        return self.gate.numpy()
