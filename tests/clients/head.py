"""Compares a detection head on the server's feature maps with the same head on timm's maps in this process.

usage: head.py GHOSTSERVE, where GHOSTSERVE is the program. Prints the largest difference of a prediction, relative to the largest prediction;
fails if it is above 1e-3. The images need no resize, so that both sides use the same pixels.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import requests
import timm
import torch
from safetensors.torch import load, save
from torch import nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TOLERANCE = 1e-3


def head_of_the_manual() -> type[nn.Module]:
    """The class that docs/clients.md shows."""
    text = (Path(__file__).parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")
    source = re.search(r"^class Head.*?(?=^with )", text, re.MULTILINE | re.DOTALL)
    names: dict = {"nn": nn}
    exec(source.group(), names)  # noqa: S102
    return names["Head"]


def bmp(pixels: np.ndarray) -> bytes:
    """Height × width × 3 bytes as a lossless image file."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, (3 * width + 3) // 4 * 4), np.uint8)
    rows[:, : 3 * width] = pixels[::-1, :, ::-1].reshape(height, -1)
    head = io.BytesIO()
    head.write(b"BM" + (54 + rows.size).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little"))
    for value, size in ((40, 4), (width, 4), (height, 4), (1, 2), (24, 2), (0, 4), (rows.size, 4)):
        head.write(value.to_bytes(size, "little"))
    return head.getvalue() + bytes(16) + rows.tobytes()


def model_folder(folder: Path, model: nn.Module) -> None:
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    weights = save(state)
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "labels.txt").write_text("".join(f"class {i}\n" for i in range(1000)))
    digest = hashlib.sha256(weights).hexdigest()
    (folder / "manifest.toml").write_text(
        'id = "timm"\n[network]\narchitecture = "ghostnetv2_100"\nweights = "weights.safetensors"\n'
        f'digest = "sha256:{digest}"\n[input]\nsize = [224, 224]\nresize = 256\nmean = {list(MEAN)}\nstd = {list(STD)}\n'
        '[labels]\nfile = "labels.txt"\n'
    )


def main() -> None:
    torch.manual_seed(0)
    whole = timm.create_model("ghostnetv2_100", pretrained=False).eval()
    backbone = timm.create_model("ghostnetv2_100", pretrained=False, features_only=True).eval()
    # With features_only, timm names the blocks `blocks_S`.
    renamed = {re.sub(r"^blocks\.(\d+)", r"blocks_\1", k): v for k, v in whole.state_dict().items()}
    backbone.load_state_dict({k: renamed[k] for k in backbone.state_dict()})
    head = head_of_the_manual()(backbone.feature_info.channels()[2:]).eval()
    with tempfile.TemporaryDirectory() as folder:
        model_folder(Path(folder), whole)
        command = [sys.argv[1], "serve", "--listen", "127.0.0.1:0", "--no-calibration", "--log-format", "json"]
        server = subprocess.Popen([*command, "--model", folder], stderr=subprocess.PIPE, text=True)
        try:
            address = next(a for line in server.stderr if (a := json.loads(line).get("address")))
            for width, height in ((320, 320), (416, 320)):
                y, x, c = np.ogrid[:height, :width, :3]
                pixels = ((x * 5 + y * 3 + c * 85 + (x // 16) * (y // 16) * 37) % 256).astype(np.uint8)
                answer = requests.post(
                    f"http://{address}/v1/features",
                    params={"cut": "timm", "size": f"{width}x{height}", "fit": "stretch"},
                    headers={"accept": "application/vnd.safetensors"},
                    data=bmp(pixels),
                    timeout=60,
                )
                assert answer.ok, answer.text
                served = load(answer.content)
                image = (torch.tensor(pixels) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
                with torch.inference_mode():
                    local = backbone(image.permute(2, 0, 1)[None])[2:]
                    expected = head(dict(zip(("c3", "c4", "c5"), local)))
                    found = head({name: served[name] for name in ("c3", "c4", "c5")})
                for e, f in zip(expected, found):
                    worst = float((e - f).abs().max() / e.abs().max())
                    print(f"{width}x{height} {tuple(e.shape)}: {worst:.1e}")
                    assert worst <= TOLERANCE
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
