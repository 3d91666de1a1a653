"""Download llama.cpp and build it for this CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

VERSION = "0.3.36"
"""The release of llama-cpp-python whose source archive contains llama.cpp."""
ARCHIVE = f"llama_cpp_python-{VERSION}"
BATCHED_BENCH = "llama-batched-bench"
QUANTIZE = "llama-quantize"
TOOLS = ("cmake", "make", "cc", "c++")
SETTINGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
DOWNLOAD_TIMEOUT_S = 600
BUILD_TIMEOUT_S = 2 * 3600


def default_folder() -> Path:
    """Return the folder for the sources and the build, in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "raylens" / "llama.cpp"


def build(folder: Path, jobs: int) -> Path:
    """Return the folder of llama.cpp's programs, which are built in ``folder`` if need be.

    Raises ``SystemExit``, with a message, if a tool is missing or a step fails.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        sys.exit(
            f"llama.cpp cannot be built without {', '.join(missing)}:"
            " apt-get install cmake make gcc g++"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ARCHIVE).exists():
        _download(folder)
    source = folder / ARCHIVE / "vendor" / "llama.cpp"
    target = source / "build"
    print(f"Building llama.cpp in {target}", file=sys.stderr, flush=True)
    configure = ["cmake", "-S", str(source), "-B", str(target), *SETTINGS]
    compile_programs = ["cmake", "--build", str(target), "--parallel", str(jobs)]
    compile_programs += ["--target", BATCHED_BENCH, QUANTIZE]
    with (folder / "build.log").open("w") as log:
        for command in (configure, compile_programs):
            process = subprocess.run(command, stdout=log, stderr=log, timeout=BUILD_TIMEOUT_S)
            if process.returncode:
                sys.exit(f"llama.cpp could not be built: see {log.name}")
    return target / "bin"


def _download(folder: Path) -> None:
    """Unpack the sources into ``folder``; an interrupted download leaves nothing in their place."""
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        pip = [sys.executable, "-m", "pip", "download", f"llama-cpp-python=={VERSION}"]
        pip += ["--no-binary", "llama-cpp-python", "--no-deps", "--dest", unfinished]
        process = subprocess.run(pip, stdout=sys.stderr, timeout=DOWNLOAD_TIMEOUT_S)
        if process.returncode:
            sys.exit(f"llama-cpp-python {VERSION} could not be downloaded from PyPI")
        with tarfile.open(Path(unfinished) / f"{ARCHIVE}.tar.gz") as archive:
            archive.extractall(unfinished, filter="data")
        (Path(unfinished) / ARCHIVE).rename(folder / ARCHIVE)


def run_program(command: Sequence[str], timeout_s: float) -> str:
    """Return a program's standard output. Raises ``RuntimeError`` if it fails."""
    process = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{process.stderr[-2000:]}")
    return process.stdout
