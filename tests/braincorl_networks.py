# SPDX-License-Identifier: Apache-2.0
"""Tiny networks with random weights, written to folders as each library's own tools write them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

CLIP_MEAN, CLIP_SD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZE = 32
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


def shrink(
    image: np.ndarray,
    size: int,
    mean,
    sd,
    *,
    crop: int | None = None,
    square: bool = False,
    rounded: bool = False,
    method: str = "bicubic",
) -> np.ndarray:
    """Shorter side to ``size`` (or squashed to a square), central ``crop``, normalised: (3, crop, crop).

    Libraries differ in where the centre is when a margin is odd: transformers rounds down, torchvision to the
    nearest even number (``rounded``).
    """
    from PIL import Image

    crop = crop or size
    height, width = image.shape[:2]
    shape = (size, size) if square else tuple(int(size * n / min(height, width)) for n in (width, height))
    x = np.asarray(Image.fromarray(image).resize(shape, Image.Resampling[method.upper()]), np.float64) / 255
    top, left = (round((n - crop) / 2) if rounded else (n - crop) // 2 for n in x.shape[:2])
    x = (x[top : top + crop, left : left + crop] - np.array(mean)) / np.array(sd)
    return x.transpose(2, 0, 1).astype(np.float32)


def write_byte_vocabulary(folder: Path) -> None:
    """CLIP's tokenizer with one token per byte (and per last byte of a word)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = [chr(b) for b in shown] + [chr(256 + i) for i in range(len(hidden))]
    tokens = letters + [f"{x}</w>" for x in letters] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))


def clip(folder: Path):
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    net = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)).eval()
    net.save_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    processor.save_pretrained(folder)
    write_byte_vocabulary(folder)
    return net


def siglip(folder: Path):
    import torch
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    torch.manual_seed(1)
    text = {**TEXT, "vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    net = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).eval()
    net.save_pretrained(folder)
    SiglipImageProcessor(size={"height": SIZE, "width": SIZE}, resample=3).save_pretrained(folder)
    write_byte_vocabulary(folder)
    return net


def dino(folder: Path):
    import torch
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(2)
    net = Dinov2Model(Dinov2Config(**{**VISION, "mlp_ratio": 2})).eval()
    net.save_pretrained(folder)
    processor = BitImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": SIZE, "width": SIZE}, resample=3
    )
    processor.save_pretrained(folder)
    return net


def resnet(folder: Path):
    import torch
    from transformers import BitImageProcessor, ResNetConfig, ResNetModel

    torch.manual_seed(3)
    net = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])).eval()
    net.save_pretrained(folder)
    processor = BitImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, resample=3
    )
    processor.save_pretrained(folder)
    return net


def open_clip_folder(folder: Path):
    import open_clip
    import torch

    torch.manual_seed(4)
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    net = open_clip.CLIP(**config).eval()
    preprocessing = {"mean": CLIP_MEAN, "std": CLIP_SD, "interpolation": "bicubic", "resize_mode": "shortest"}
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing})
    )
    torch.save(net.state_dict(), folder / "open_clip_pytorch_model.bin")
    (folder / "conform-tiny.json").write_text(json.dumps(config))
    return net
