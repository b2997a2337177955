"""Writes an ONNX classifier that names the prevailing colour of an image, and its labels. A model to try things with.

    python docs/examples/colours.py model.onnx labels.txt

Its input is a batch of RGB images of 64x64, normalised with ImageNet's mean and standard deviation, and its output a
score for each of four classes. Yours comes from `torch.onnx.export` or any other tool. Needs the package `onnx`.
"""

import sys

import onnx
from onnx import TensorProto, helper

# Scores from the means of the normalised R, G and B: each class's weights, and the bias.
CLASSES = {"red": (4, -2, -2), "green": (-2, 4, -2), "blue": (-2, -2, 4), "grey": (0, 0, 0)}
BIAS = (0, 0, 0, 1)


def main(model, labels):
    """Writes both files."""
    weights = [value for channel in zip(*CLASSES.values(), strict=True) for value in channel]
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["means"]),
            helper.make_node("Flatten", ["means"], ["row"]),
            helper.make_node("Gemm", ["row", "weights", "bias"], ["scores"]),
        ],
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 64, 64])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", len(CLASSES)])],
        [
            helper.make_tensor("weights", TensorProto.FLOAT, [3, len(CLASSES)], weights),
            helper.make_tensor("bias", TensorProto.FLOAT, [len(CLASSES)], BIAS),
        ],
    )
    # Versions that every ONNX Runtime of the last years reads.
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    with open(labels, "w", encoding="utf-8") as file:
        file.write("\n".join(CLASSES) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
