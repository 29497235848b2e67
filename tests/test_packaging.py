"""What is in the wheel and in the source archive; an installed copy works away from the source tree."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", folder, ROOT]
    subprocess.run(command, check=True)
    return next(folder.glob("minimask-*.whl"))


@pytest.mark.slow
def test_the_wheel_has_the_sample_the_configurations_and_every_module(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "minimask"
    wanted = [*package.rglob("*.py"), *package.rglob("*.toml"), *package.rglob("*.cu")]
    wanted += [*package.rglob("*.html"), *package.rglob("*.cpp"), *package.rglob("*.h")]
    for folder in (package / "data" / "nuclei", package / "weights" / "nuclei"):
        wanted += [p for p in folder.rglob("*") if p.is_file()]
    assert {p.relative_to(ROOT).as_posix() for p in wanted} <= names
    assert any(name.endswith(".png") for name in names)
    assert not any(name.startswith(("tests/", "tutorials/")) for name in names)


@pytest.mark.slow
def test_the_page_of_an_index_has_no_links_to_files_that_are_not_there(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        page = archive.read(name).decode()
    assert not re.findall(r"\]\((?!https?:)", page)
    assert "first steps (`docs/start.md`)" in page and "> Four microscope images" in page


@pytest.mark.slow
def test_the_source_archive_has_all_that_the_repository_has(tmp_path):
    pytest.importorskip("setuptools", reason="setuptools is not installed to build the source archive with")
    git = shutil.which("git") and subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if not git or git.returncode:
        pytest.skip("no git, or no repository, to say what belongs into the source archive")
    command = ["setup.py", "--quiet", "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert {name for name in git.stdout.decode().split("\0") if name} <= held
    assert not any("__pycache__" in name or name.startswith("docs/tutorials/") for name in held)


@pytest.mark.slow
def test_an_installed_wheel_finds_its_data_far_from_the_source_tree(wheel, tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", site, wheel]
    subprocess.run(install, check=True)
    code = (
        "import minimask, minimask.config as c; from minimask.data import nuclei_sample\n"
        "print(minimask.__file__); print(len(nuclei_sample('train')), len(nuclei_sample('val')))\n"
        "nuclei_sample('val')[0]; print(c.read_config('demo').model.name)"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    run = [sys.executable, "-c", code]
    result = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    lines = result.stdout.split()
    assert lines[0].startswith(str(site))
    assert lines[1:] == ["32", "10", "maskrcnn_small"]
