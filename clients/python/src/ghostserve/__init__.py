"""Client of GhostServe, an image classification server.

    from ghostserve import Client

    with Client("http://localhost:8080") as client:
        for prediction in client.classify("photo.jpg").result.predictions:
            print(prediction.label, prediction.probability)

`AsyncClient` has the same methods for asyncio.
"""

from ._async_client import AsyncClient
from ._client import Client
from ._errors import (
    ApiError,
    ConnectionFailedError,
    DeadlineExceededError,
    GhostServeError,
    ImageRejectedError,
    InvalidRequestError,
    InvalidResponseError,
    OverloadedError,
    RequestTimeoutError,
    ServerError,
    UnavailableError,
    UnknownModelError,
)
from ._images import Image, Images
from ._retry import Retry
from ._tensors import Tensor
from ._types import (
    Attention,
    Box,
    Classification,
    Cut,
    DType,
    FeatureResult,
    Features,
    Fit,
    Geometry,
    ImageError,
    ImageInfo,
    Level,
    ModelDetails,
    ModelReference,
    ModelSummary,
    Prediction,
    Result,
)

__version__ = "0.2.0"

__all__ = [
    "ApiError",
    "AsyncClient",
    "Attention",
    "Box",
    "Classification",
    "Client",
    "ConnectionFailedError",
    "Cut",
    "DType",
    "DeadlineExceededError",
    "FeatureResult",
    "Features",
    "Fit",
    "Geometry",
    "GhostServeError",
    "Image",
    "ImageError",
    "ImageInfo",
    "ImageRejectedError",
    "Images",
    "InvalidRequestError",
    "InvalidResponseError",
    "Level",
    "ModelDetails",
    "ModelReference",
    "ModelSummary",
    "OverloadedError",
    "Prediction",
    "RequestTimeoutError",
    "Result",
    "Retry",
    "ServerError",
    "Tensor",
    "UnavailableError",
    "UnknownModelError",
]
