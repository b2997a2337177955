"""Mosec with ONNX Runtime: PyTorch's ONNX export in f32, as one would serve it without this project.

One process per core, with one thread each. front.py lists the settings.

    PEER_MODEL=target/bench/ghostnetv2_100.onnx python benches/peers/mosec_server.py --address 127.0.0.1 --port 8001
"""

from __future__ import annotations

import numpy as np
import onnxruntime

from front import Network, serve


class OnnxRuntime(Network):
    def load(self, path: str, batch: int) -> None:
        options = onnxruntime.SessionOptions()
        # The processes run in parallel; a process has one thread, and no thread spins.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def run(self, images: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.name: images})[0]


if __name__ == "__main__":
    serve(OnnxRuntime)
