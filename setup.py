"""All metadata of the package; pyproject.toml only names the build system and configures the tools."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "minimask/_version.py").read_text("utf-8")).group(1)
# Processes that train together, and an mpiexec to start them: wheels, of no use on Windows.
MPI = ["mpi4py>=4.1; sys_platform != 'win32'", "mpich>=4.2.3; sys_platform != 'win32'"]


def without_our_files(page: str) -> str:
    """README.md as a package index can show it, which has none of our files, nor an address to find them at.

    Links name the file that they would lead to; of pictures, the description is left.
    """

    def told(match: re.Match) -> str:
        picture, text, path = match.groups()
        if picture:
            return f"> {text}"
        return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"

    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]*)\)", told, page)


setup(
    name="minimask",
    version=VERSION,
    description="Mask R-CNN from scratch on NumPy and CuPy, every gradient derived by hand and checked",
    long_description=without_our_files((ROOT / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    author="The minimask authors",
    license="MIT",
    keywords="mask-rcnn instance-segmentation object-detection numpy cupy autograd roialign teaching",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["minimask", "minimask.*"]),
    package_data={
        "minimask": [
            "ablations/measured/*.json",
            "lessons/explorer.html",
            "lessons/cuda_on_cpu/*.cpp",
            "lessons/cuda_on_cpu/*.h",
            "results/report/*.css",
            "inspection/*.html",
            "kernels/*.cu",
            "kernels/*/*.cu",
            "config/*.toml",
            "data/nuclei/*.json",
            "data/nuclei/LICENSE",
            "data/nuclei/README.md",
            "data/nuclei/images/*.png",
            "weights/nuclei/*.npz",
            "weights/nuclei/README.md",
        ]
    },
    install_requires=[
        "numpy>=2.0",
        "scipy>=1.13",
        "pillow>=11.3",
        "matplotlib>=3.8.4",
        "pycocotools>=2.0.8",
        "tqdm>=4.60",
        "threadpoolctl>=3.5",
    ],
    extras_require={
        "cuda12": ["cupy-cuda12x[ctk]>=14,<15"],
        "cuda13": ["cupy-cuda13x[ctk]>=14,<15"],
        "mpi": MPI,
        # NVRTC without a GPU or a driver: tests/test_cuda_sources.py compiles the kernels with it
        "cuda-compile": ["cuda-core>=1.0,<2", "cuda-bindings>=12.9,<13", "nvidia-cuda-nvrtc-cu12>=12.9"],
        # before urllib3 2 a download that was cut short looked like a whole one
        "download": ["pooch>=1.8", "requests>=2.30", "urllib3>=2.0"],
        "notebooks": ["jupyter>=1.0", "ipywidgets>=8.0"],
        "test": [
            "pytest>=8.0",
            "pytest-xdist>=3.8",
            "hypothesis>=6.100",
            "nbformat>=5.9.2",
            "nbclient>=0.10.1",
            "ipykernel>=6.0",
            "pooch>=1.8",
            "requests>=2.30",
            "urllib3>=2.0",
            *MPI,
        ],
        # sphinx-mathjax-offline is a wheel of MathJax, so that neither the build nor a reader needs a network
        "docs": [
            "sphinx>=8.1",
            "myst-nb>=1.2",
            "numpydoc>=1.8",
            "furo>=2024.8.6",
            "sphinx-mathjax-offline>=0.0.2",
        ],
    },
    entry_points={"console_scripts": ["minimask = minimask.command.cli:entry_point"]},
)
