"""Writes a model as a graph, checks it against PyTorch, and makes it smaller.

The files need nothing of Loupe: `model.onnx` runs in onnxruntime, `model.pt2` in torch.export.
Both take any number of images of one size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from loupe.export.network import INPUT, OUTPUTS, ExportedLoupe, ExportError
from loupe.writing import write_bytes

ONNX, TORCH_EXPORT = "onnx", "torch-export"
FORMATS = {ONNX: "model.onnx", TORCH_EXPORT: "model.pt2"}
# With GridSample and the opset's own GELU.
_OPSET = 20
# Weights that dynamic quantisation may round: not convolutions, which onnxruntime has no fast
# integer kernel for on CPUs, and nothing of the statistics of the stem.
_DYNAMIC = ("MatMul", "Gemm")
_STATIC = ("MatMul", "Gemm", "Conv")
_MOST_IMAGES = 1024


class Difference(NamedTuple):
    """Largest differences from PyTorch over some images.

    Attributes:
        probability: Of the images.
        forgery_map: Of the pixels.
        changed: Fraction of pixels on the other side of one half.
    """

    probability: float
    forgery_map: float
    changed: float


def exported_program(network: ExportedLoupe, images: Tensor) -> torch.export.ExportedProgram:
    """The graph of torch.export; `images` are (2, 3, H, W), an example."""
    batch = torch.export.Dim("batch", min=1, max=_MOST_IMAGES)
    with torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes=({0: batch},))


def write_graph(
    network: ExportedLoupe, folder: Path, formats: Sequence[str], metadata: dict[str, str]
) -> list[Path]:
    """Writes the graph in each format.

    Args:
        network: What to write.
        folder: Where to.
        formats: Of FORMATS.
        metadata: What the file says of itself.

    Returns:
        The files.

    Raises:
        ExportError: An unknown format.
    """
    unknown = set(formats) - set(FORMATS)
    if unknown:
        raise ExportError(f"unknown formats {sorted(unknown)}; choose from {', '.join(FORMATS)}")
    program = exported_program(network, example_images(network.size))
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / FORMATS[name] for name in formats]
    for name, file in zip(formats, files, strict=True):
        with tempfile.TemporaryDirectory() as place:
            made = Path(place) / file.name
            if name == TORCH_EXPORT:
                torch.export.save(program, made, extra_files={"metadata.txt": str(metadata)})
            else:
                _save_onnx(program, made, metadata)
            write_bytes(file, made.read_bytes())
    return files


def _save_onnx(program: torch.export.ExportedProgram, file: Path, metadata: dict[str, str]) -> None:
    made = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=_OPSET,
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        external_data=False,
    )
    assert made is not None
    made.model.metadata_props.update(metadata)
    made.save(file, external_data=False)


def example_images(size: tuple[int, int], count: int = 2) -> Tensor:
    """(count, 3, H, W) float32 from 0 to 255: noise over a slope, the same each time."""
    rng = np.random.default_rng(0)
    slope = np.linspace(40, 200, size[1])[None, None, None]
    noise = rng.normal(0, 12, (count, 3, *size))
    return torch.from_numpy((slope + noise).clip(0, 255).round()).float()


def open_graph(file: Path, threads: int = 0) -> Any:
    """A session of onnxruntime on the CPU.

    Args:
        file: `model.onnx`.
        threads: 0 = PyTorch's number.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _runner(file: Path) -> Callable[[Tensor], Sequence[np.ndarray]]:
    """What runs a graph of either format."""
    if file.suffix == Path(FORMATS[TORCH_EXPORT]).suffix:
        module = torch.export.load(file).module()
        return lambda images: [value.numpy() for value in module(images)]
    session = open_graph(file)
    return lambda images: session.run(None, {INPUT: images.numpy()})


def difference(network: ExportedLoupe, file: Path, images: Tensor) -> Difference:
    """How far the numbers of a graph's file are from PyTorch's on (B, 3, H, W), image by image."""
    run = _runner(file)
    found = []
    for image in images.split(1):
        with torch.no_grad():
            probability, forgery_map, _ = (value.numpy() for value in network(image))
            own_probability, own_map, _ = run(image)
        changed = (forgery_map > 0.5) != (own_map > 0.5)
        found.append(
            (
                np.abs(own_probability - probability).max(),
                np.abs(own_map - forgery_map).max(),
                changed.mean(),
            )
        )
    return Difference(*(float(value) for value in np.max(found, axis=0)))


def quantise(file: Path, target: Path, images: Tensor | None = None) -> None:
    """Rounds weights to 8 bits; with images also what flows between the layers.

    Args:
        file: `model.onnx`.
        target: The smaller file.
        images: (B, 3, H, W) from which ranges are measured (static); None = ranges are taken anew
            for each image (dynamic).
    """
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as place:
        made = Path(place) / "quantised.onnx"
        if images is None:
            quantization.quantize_dynamic(
                file,
                made,
                op_types_to_quantize=list(_DYNAMIC),
                extra_options={"MatMulConstBOnly": True},
            )
        else:
            quantization.quantize_static(
                file,
                made,
                _Calibration(images),
                op_types_to_quantize=list(_STATIC),
                nodes_to_exclude=_of_the_statistics(file),
                per_channel=True,
                extra_options={"MatMulConstBOnly": True},
            )
        write_bytes(target, made.read_bytes())


class _Calibration:
    """Images one by one, as onnxruntime's quantiser asks for them."""

    def __init__(self, images: Tensor) -> None:
        self._images: Iterator[Tensor] = iter(images.split(1))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input; None at the end."""
        image = next(self._images, None)
        return None if image is None else {INPUT: image.numpy()}


def _of_the_statistics(file: Path) -> list[str]:
    """Nodes of the forensic statistics, whose fixed kernels need all their bits."""
    import onnx

    graph = onnx.load(file).graph
    learned = {one.name for one in graph.initializer if one.name.endswith((".weight", ".bias"))}
    learned = {name for name in learned if ".kernels" not in name}
    return [
        node.name
        for node in graph.node
        if node.op_type in _STATIC and not set(node.input[1:2]) & learned
    ]
