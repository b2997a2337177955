"""Mosec with OpenVINO: PyTorch's ONNX export, in f32 or bf16 (PEER_PRECISION).

One process per core, with one stream and one thread each. front.py lists the settings.

    PEER_MODEL=target/bench/ghostnetv2_100.onnx PEER_PRECISION=bf16 \
        python benches/peers/openvino_server.py --address 127.0.0.1 --port 8002
"""

from __future__ import annotations

import os

import numpy as np
import openvino

from front import CROP, Network, serve


class OpenVino(Network):
    def load(self, path: str, batch: int) -> None:
        core = openvino.Core()
        options = {
            "INFERENCE_PRECISION_HINT": os.environ.get("PEER_PRECISION", "f32"),
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": "1",
            # With pinning, every process would pin its thread to the same core.
            "ENABLE_CPU_PINNING": False,
        }
        # One compiled model per batch size: OpenVINO is slower with dynamic shapes.
        self.requests = []
        for count in range(1, batch + 1):
            model = core.read_model(path)
            model.reshape([count, 3, CROP, CROP])
            self.requests.append(core.compile_model(model, "CPU", options).create_infer_request())

    def run(self, images: np.ndarray) -> np.ndarray:
        request = self.requests[len(images) - 1]
        # The input is read in place; the output is copied out before the next run.
        request.infer([images], share_inputs=True, share_outputs=True)
        return request.get_output_tensor(0).data


if __name__ == "__main__":
    serve(OpenVino, batch=4)
