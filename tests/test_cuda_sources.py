"""Every CUDA source compiles for every GPU since Turing without a warning: by nvcc, and by NVRTC as in CuPy.

A compiler that is missing is skipped by name. NVRTC comes with the extra `cuda-compile` and needs neither a
GPU nor a driver.
"""

import importlib.util
import io
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import minimask.kernels
from minimask import backend
from minimask.lessons import cuda_on_cpu

FILES = {path.stem: path for path in sorted(Path(minimask.kernels.__file__).parent.rglob("*.cu"))}
SOURCES = list(FILES)
ARCHITECTURES = (75, 80, 86, 89, 90)


def _missing(compiler: str) -> str:
    if compiler == "nvcc":
        return "" if shutil.which("nvcc") else "no nvcc on PATH"
    found = importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.core")
    return "" if found else "no NVRTC: pip install minimask[cuda-compile]"


def nvcc(source: str, directory: Path, architectures=ARCHITECTURES) -> str:
    """What nvcc has to say about a source: nothing if all is well.

    Machine code is made of every instance that the launcher may ask for. Registers spilled to memory, or
    arrays kept there, are warnings.
    """
    wanted = [f"(void*){instance}" for instance in cuda_on_cpu.instances(source)]
    (directory / "kernel.cu").write_text(f"{source}\nvoid* wanted[] = {{{', '.join(wanted)}}};\n")
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    strict = ["-Werror", "all-warnings", "-Xptxas", "-warn-spills,-warn-lmem-usage"]
    command = ["nvcc", "-std=c++17", "-fatbin", "--threads", "2", *strict, *targets, "kernel.cu", "-o", "out"]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    return result.stderr if result.returncode or "warning" in result.stderr else ""


def nvrtc(source: str, directory: Path, architectures=ARCHITECTURES) -> str:
    """What NVRTC has to say; it is given the names that our launcher gives CuPy, and no headers."""
    from cuda.core import Program, ProgramOptions

    names = tuple(cuda_on_cpu.instances(source))

    def compile_for(architecture: int) -> str:
        said = io.StringIO()
        options = ProgramOptions(std="c++17", arch=f"sm_{architecture}")
        try:
            made = Program(source, "c++", options=options).compile("cubin", name_expressions=names, logs=said)
        except Exception as error:  # its class is cuda.core's own
            return str(error)
        assert set(made.symbol_mapping) == set(names) and made.code
        return said.getvalue().strip("\0\n ")

    with ThreadPoolExecutor(2) as pool:
        return "".join(pool.map(compile_for, architectures))


COMPILERS = [
    pytest.param(
        compiler,
        id=compiler.__name__,
        marks=pytest.mark.skipif(bool(_missing(compiler.__name__)), reason=_missing(compiler.__name__)),
    )
    for compiler in (nvcc, nvrtc)
]


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", SOURCES)
def test_the_source_compiles_for_every_gpu_since_turing_without_a_warning(name, compiler, tmp_path):
    source = FILES[name].read_text(encoding="utf-8")
    assert compiler(source, tmp_path) == ""


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(
    "line, what",
    [
        ("x[i] = missing;", "missing"),
        ("int never_used;", "never_used"),
        ("y[i] = x[i];", "modifiable"),
    ],
)
def test_what_a_compiler_finds_is_heard(line, what, compiler, tmp_path):
    source = (
        "template <typename T>\n__global__ void f(T* x, const T* y) {\n    int i = threadIdx.x;\n    LINE\n}"
    )
    assert what in compiler(source.replace("LINE", line), tmp_path, [80])
    assert compiler(source.replace("LINE", "x[i] = y[i];"), tmp_path, [80]) == ""


@pytest.mark.parametrize("name", SOURCES)
def test_the_launcher_reads_the_same_kernels_in_a_source_as_the_compilers_do(name):
    text, kernels = backend.cuda._source(name)
    assert {k: is_template for k, (is_template, _) in kernels.items()} == {
        k: template is not None for k, (template, _) in cuda_on_cpu.kernels(text).items()
    }
    assert [len(types) for _, types in kernels.values()] == [
        len(parameters) for _, parameters in cuda_on_cpu.kernels(text).values()
    ]
