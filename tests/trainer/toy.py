"""A tiny model that keeps the trainer's contract, and a tiny data set for it."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from loupe import add_loupe_config
from loupe.trainer import LoupeTrainer


@META_ARCH_REGISTRY.register()
class ToyDetector(nn.Module):
    """Two losses with normalisers of their own, and a random draw in every training step.

    `backbone` and `classifier` as in Loupe. `MODEL.SEGMENTER.CONDITION_JITTER` scales the draw.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.GroupNorm(2, 4), nn.GELU())
        self.classifier = nn.Linear(4, 1)
        self.segmenter = nn.Conv2d(4, 1, 1)
        # Takes no part, as a head whose loss the config switches off.
        self.spare = nn.Parameter(torch.zeros(1))
        self.noise = cfg.MODEL.SEGMENTER.CONDITION_JITTER
        for part in cfg.MODEL.FREEZE:
            getattr(self, part).requires_grad_(False)

    def loss_counts(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        masks = sum(int(item["regions"].max()) for item in batched_inputs)
        return torch.tensor([len(batched_inputs), 0, masks, 0], dtype=torch.float64)

    def forward(self, batched_inputs: list[dict[str, Any]], counts: Tensor | None = None) -> Any:
        device = self.classifier.weight.device
        images = torch.stack([item["image"] for item in batched_inputs]).to(device) / 255 - 0.5
        features = self.backbone(images)
        if self.training:
            features = features + self.noise * torch.rand_like(features)
        logits = self.classifier(features.mean((2, 3)))[:, 0]
        maps = self.segmenter(features)
        if not self.training:
            return [self._answer(*one) for one in zip(batched_inputs, logits, maps, strict=True)]
        counts = self.loss_counts(batched_inputs) if counts is None else counts
        labels = torch.tensor([float(item["label"]) for item in batched_inputs], device=device)
        masks = torch.stack([item["mask"] for item in batched_inputs]).to(device)
        masks = F.avg_pool2d(masks[:, None], 4)
        forged = masks.amax((1, 2, 3)) > 0
        image = F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="sum")
        pixel = F.binary_cross_entropy_with_logits(maps.float(), masks, reduction="none")
        pixel = (pixel.mean((1, 2, 3)) * forged).sum()
        return {"loss_image": image / counts[0], "loss_mask": pixel / counts[2].clamp(min=1e-9)}

    def _answer(self, item: dict[str, Any], logit: Tensor, logits: Tensor) -> dict[str, Any]:
        size = (item["height"], item["width"])
        pixels = F.interpolate(logits.sigmoid()[None], size, mode="bilinear")[0, 0]
        return {"forgery_score": float(logit.sigmoid()), "forgery_map": pixels.cpu()}


def toy_config(folder: Path, *options: Any) -> CfgNode:
    """A config for the toy model on the data set in `folder`, writing to `folder/output`."""
    cfg = add_loupe_config(get_cfg())
    data = str(folder / "manifest.csv")
    cfg.merge_from_list(
        ["MODEL.META_ARCHITECTURE", "ToyDetector", "MODEL.DEVICE", "cpu", "MODEL.FREEZE", []]
        + ["DATASETS.TRAIN", (data,), "DATASETS.TEST", (), "DATALOADER.NUM_WORKERS", 0]
        + ["INPUT.SIZE", 32, "OUTPUT_DIR", str(folder / "output"), "SEED", 7]
        + ["SOLVER.MAX_ITER", 4, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.BASE_LR", 0.01]
        + ["SOLVER.CHECKPOINT_PERIOD", 100, "SOLVER.WARMUP_FRACTION", 0.0]
        + ["MODEL.SEGMENTER.CONDITION_JITTER", 0.1, *options]
    )
    cfg.freeze()
    return cfg


# The two real models, at a size of milliseconds; each takes the items of the same mapper.
_TINY_ENCODER = (
    *("MODEL.PERCEPTION_ENCODER.NAME", "vit_pe_core_tiny_patch16_384"),
    *("MODEL.PERCEPTION_ENCODER.DEPTH", 1, "MODEL.PERCEPTION_ENCODER.EMBED_DIM", 32),
    *("MODEL.PERCEPTION_ENCODER.NUM_HEADS", 2, "INPUT.SIZE", 64, "INPUT.TARGETS", "regions"),
)
TINY_MODELS: dict[str, tuple[object, ...]] = {
    "Loupe": (
        *("MODEL.META_ARCHITECTURE", "Loupe", "MODEL.SEGMENTER.CONDITION_JITTER", 0.0),
        *_TINY_ENCODER,
        *("MODEL.SEGMENTER.FEATURE_DIM", 32),
        *("MODEL.SEGMENTER.NUM_HEADS", 2, "MODEL.SEGMENTER.PIXEL_LAYERS", 1),
        *("MODEL.SEGMENTER.PIXEL_FFN_DIM", 32, "MODEL.SEGMENTER.MASK_FFN_DIM", 32),
        *("MODEL.SEGMENTER.MASK_LAYERS", 2, "MODEL.SEGMENTER.NUM_QUERIES", 3),
        *("MODEL.SEGMENTER.TRAIN_POINTS", 64),
    ),
    "ForgeryExpert": (
        *("MODEL.META_ARCHITECTURE", "ForgeryExpert", "MODEL.EXPERT.SEGMENTATION", "backbone"),
        *_TINY_ENCODER,
        *("MODEL.EXPERT.VERDICT_DIM", 16, "MODEL.EXPERT.NUM_HEADS", 2),
        *("MODEL.EXPERT.DECODER_DIM", 32, "MODEL.EXPERT.DECODER_HEADS", 2),
        *("MODEL.EXPERT.DECODER_LAYERS", 1, "MODEL.EXPERT.DECODER_MLP_DIM", 32),
    ),
}


def write_dataset(folder: Path, count: int = 8) -> None:
    """Writes small PNG photographs with a list of them; every other one is forged."""
    random = np.random.default_rng(0)
    rows = ["image,mask,label"]
    for index in range(count):
        forged = index % 2
        image = random.integers(0, 256, (40, 48, 3), np.uint8)
        mask = np.zeros((40, 48), np.uint8)
        if forged:
            mask[8 : 16 + index, 4 : 20 + index] = 255
            image[mask > 0] //= 3
            cv2.imwrite(str(folder / f"mask{index}.png"), mask)
        cv2.imwrite(str(folder / f"image{index}.png"), image)
        rows.append(f"image{index}.png,{f'mask{index}.png' if forged else ''},{forged}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")


def train_and_save(arguments: Namespace) -> None:
    """Entry point of a process: trains the toy and leaves its weights, or its error, by rank."""
    folder = Path(arguments.folder)
    trainer = LoupeTrainer(toy_config(folder, *arguments.options))
    if arguments.poisoned_rank == comm.get_rank():
        weight = trainer.checkpointer.model.segmenter.weight
        with torch.no_grad():
            weight.fill_(float("nan"))
    exchanges = count_exchanges(trainer.model)
    try:
        trainer.train()
    except FloatingPointError as error:
        (folder / f"error{comm.get_rank()}.txt").write_text(str(error))
        return
    state = {"model": trainer.checkpointer.model.state_dict(), "exchanges": len(exchanges)}
    torch.save(state, folder / f"rank{comm.get_rank()}of{comm.get_world_size()}.pth")


def leave_in_turn(arguments: Namespace) -> None:
    """Entry point of a process: the second works longer; both note when they end and leave."""
    folder, rank = Path(arguments.folder), comm.get_rank()
    leave = dist.destroy_process_group

    def note_and_leave() -> None:
        (folder / f"left{rank}.txt").write_text(str(time.time()))
        leave()

    dist.destroy_process_group = note_and_leave
    time.sleep(1.5 * rank)
    (folder / f"done{rank}.txt").write_text(str(time.time()))


def refuse_a_file(arguments: Namespace) -> None:
    """Entry point of a process: the second cannot use a file, and the first waits for it."""
    if comm.get_rank():
        raise FileNotFoundError(2, "nothing of this name", str(arguments.folder))
    comm.synchronize()


class AbortsAtTheEnd:
    """Stands in for a native thread that aborts while the interpreter is taken down."""

    def __init__(self) -> None:
        self.abort = os.abort

    def __del__(self) -> None:
        self.abort()


def end_badly(arguments: Namespace) -> None:
    """Entry point of a process: works well, and would abort in the interpreter's last moments."""
    note = Path(arguments.folder) / f"ended{comm.get_rank()}.txt"
    late = threading.Thread(target=lambda: (time.sleep(0.5), note.write_text("in order")))
    late.start()
    atexit.register(lambda: note.write_text(note.read_text() + ", to the end"))
    sys.aborts_at_the_end = AbortsAtTheEnd()  # type: ignore[attr-defined]


def count_exchanges(model: nn.Module) -> list[int]:
    """Lets a distributed model note each exchange of gradients in the list returned."""
    exchanges: list[int] = []

    # PyTorch inspects a hook's annotations and takes none or its own.
    def exchange(_, bucket):  # noqa: ANN001, ANN202
        exchanges.append(1)
        return default_hooks.allreduce_hook(None, bucket)

    if isinstance(model, DistributedDataParallel):
        model.register_comm_hook(None, exchange)
    return exchanges
