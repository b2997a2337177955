"""Common part of the two Python servers: Mosec as the HTTP front end, and the processing of a photograph.

Mosec's front end is a compiled HTTP server that passes bodies to worker processes. POST a JPEG to /inference; the
answer is JSON with the five most probable classes. Settings are environment variables, because Mosec parses the command
line itself (`--address`, `--port`, …) and starts its workers as new processes:

    PEER_MODEL      the ONNX file
    PEER_WORKERS    number of processes that run the network, one thread each; by default one per core
    PEER_BATCH      largest batch of a worker, images
    PEER_DECODERS   number of processes that only decode and scale; 0: the workers do this themselves
"""

from __future__ import annotations

import json
import os

import cv2
import numpy as np
from mosec import Server, ValidationError, Worker

RESIZE = 256
CROP = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
TOP = 5


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def setting(name: str, default: int) -> int:
    """Returns the value of the environment variable PEER_`name`."""
    return int(os.environ.get(f"PEER_{name}", default))


def crop(body: bytes) -> np.ndarray:
    """Decodes a JPEG, scales its shorter side to 256 and crops the central 224×224: bytes in OpenCV's colour order."""
    image = None
    if body:
        image = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValidationError("not an image")
    height, width = image.shape[:2]
    scale = RESIZE / min(height, width)
    size = (max(RESIZE, round(width * scale)), max(RESIZE, round(height * scale)))
    # INTER_AREA averages when an image shrinks; OpenCV's other interpolations skip pixels.
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    left, top = (size[0] - CROP) // 2, (size[1] - CROP) // 2
    return np.ascontiguousarray(image[top : top + CROP, left : left + CROP])


def normalise(pixels: np.ndarray, out: np.ndarray) -> None:
    """Writes normalised R, G, B planes into `out`. One pass per plane is many times faster than one expression."""
    for channel in range(3):
        plane = out[channel]
        np.multiply(pixels[:, :, 2 - channel], np.float32(1 / (255 * STD[channel])), out=plane)
        plane -= np.float32(MEAN[channel] / STD[channel])


def answer(logits: np.ndarray) -> dict:
    """Returns the most probable classes and their probabilities."""
    powers = np.exp(logits - logits.max())
    powers /= powers.sum()
    best = np.argpartition(powers, -TOP)[-TOP:]
    best = best[np.argsort(-powers[best])]
    return {"predictions": [{"class": int(index), "probability": float(powers[index])} for index in best]}


class Decode(Worker):
    """The stage that decodes and scales. It passes on bytes: a quarter of the size of floats."""

    def __init__(self) -> None:
        cv2.setNumThreads(1)

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> bytes:
        return crop(data).tobytes()

    def serialize_ipc(self, data: bytes) -> bytes:
        return data


class Network(Worker):
    """The stage that runs the network. Subclasses load it in `load` and run a batch in `run`."""

    def __init__(self) -> None:
        cv2.setNumThreads(1)
        # `max_batch_size` cannot be used: Mosec sets it after the constructor.
        batch = int(os.environ["PEER_BATCH"])
        self.load(os.environ["PEER_MODEL"], batch)
        self.input = np.zeros((batch, 3, CROP, CROP), np.float32)
        for count in range(1, batch + 1):
            self.run(self.input[:count])

    def load(self, path: str, batch: int) -> None:
        raise NotImplementedError

    def run(self, images: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def deserialize(self, data: bytes) -> np.ndarray:
        return crop(data)

    def deserialize_ipc(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.uint8).reshape(CROP, CROP, 3)

    def forward(self, data: np.ndarray | list[np.ndarray]) -> dict | list[dict]:
        # Mosec passes a list only if batching is enabled.
        images = data if isinstance(data, list) else [data]
        for pixels, out in zip(images, self.input):
            normalise(pixels, out)
        answers = [answer(logits) for logits in self.run(self.input[: len(images)])]
        return answers if isinstance(data, list) else answers[0]

    def serialize(self, data: dict) -> bytes:
        return json.dumps(data).encode()


def serve(network: type[Network], batch: int = 1, decoders: int = 0) -> None:
    """Runs Mosec until it is stopped. `batch` and `decoders` are the defaults of PEER_BATCH and PEER_DECODERS."""
    # Workers inherit these variables: libraries must not start more than one thread per worker.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["PEER_BATCH"] = str(setting("BATCH", batch))
    server = Server()
    decoders = setting("DECODERS", decoders)
    if decoders:
        server.append_worker(Decode, num=decoders)
    # Waits 1 ms for a batch to fill, the shortest possible time: 0 would mean Mosec's default, 10 ms.
    server.append_worker(
        network, num=setting("WORKERS", cores()), max_batch_size=setting("BATCH", batch), max_wait_time=1
    )
    server.run()
