"""Compiles the C sources, once for each instruction set that a machine of this kind may have.

``python -m models.cpu.build`` compiles ahead of time: for this machine's CPU, or with ``--all`` for
every CPU of its kind, as an image needs it.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "native"
CACHE_VARIABLE = "RAYLENS_KERNEL_CACHE"
"""Environment variable: the folder of compiled libraries."""
TIMEOUT_S = 300.0
FLAGS = ("-O3", "-std=c11", "-ffp-contract=off", "-fopenmp", "-fPIC", "-shared", "-Wno-psabi")
"""Products and sums are contracted nowhere, so that a row's result is the same in every tile."""


class BuildError(Exception):
    """There is no compiler, or it failed."""


@dataclass(frozen=True)
class InstructionSet:
    """The sources are compiled with ``flags`` for CPUs that have all ``features``, which are named
    as in ``/proc/cpuinfo``."""

    name: str
    machines: tuple[str, ...]
    flags: tuple[str, ...] = ()
    features: frozenset[str] = frozenset()


_X86 = ("x86_64", "AMD64")
_ARM = ("aarch64", "arm64")
_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq")


def _x86(name: str, *features: str) -> InstructionSet:
    flags = tuple(f"-m{feature.replace('_', '')}" for feature in features)
    return InstructionSet(name, _X86, flags, frozenset(features))


PORTABLE = InstructionSet("portable", (*_X86, *_ARM))
INSTRUCTION_SETS = (
    _x86("avx512_bf16", *_AVX512, "avx512_vnni", "avx512_bf16"),
    _x86("avx512", *_AVX512, "avx512_vnni"),
    _x86("avx2_vnni", "avx2", "fma", "avx_vnni"),
    _x86("avx2", "avx2", "fma"),
    InstructionSet("neon", _ARM, ("-march=armv8.2-a+dotprod",), frozenset({"asimddp"})),
    PORTABLE,
)
"""The best first."""


def usable_sets(cpu_features: frozenset[str] | None = None) -> list[InstructionSet]:
    """Return the instruction sets of this machine's CPU, the best first."""
    features = _cpu_features() if cpu_features is None else cpu_features
    return [
        instructions
        for instructions in INSTRUCTION_SETS
        if platform.machine() in instructions.machines and instructions.features <= features
    ]


def best_library(candidates: Sequence[InstructionSet] | None = None) -> Path:
    """Return the library of the best instruction set that the compiler knows.

    Raises ``BuildError``. ``candidates`` are those of this CPU unless given.
    """
    error = BuildError(f"there are no kernels for this kind of machine ({platform.machine()})")
    for instructions in usable_sets() if candidates is None else candidates:
        try:
            return compiled_library(instructions)
        except BuildError as failure:
            error = failure
    raise error


def _cpu_features() -> frozenset[str]:
    """Return the CPU's features as Linux names them; none on another system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def compiled_library(instructions: InstructionSet, folder: Path | None = None) -> Path:
    """Return the library's path; compile it unless ``folder`` holds it. Raises ``BuildError``.

    ``folder`` is the user's cache unless given.
    """
    folder = folder or cache_folder()
    library = folder / f"{instructions.name}-{_digest(instructions)}.so"
    if not library.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / f".{instructions.name}.lock"):
                if not library.exists():
                    _compile(instructions, library)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(str(error)) from error
    return library


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process compile at a time. Those that start together then find its library."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(instructions: InstructionSet) -> str:
    """Return a digest of what a library is compiled from."""
    digest = hashlib.blake2b(repr((FLAGS, instructions.flags)).encode(), digest_size=8)
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()


def cache_folder() -> Path:
    """Return the folder of compiled libraries."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "raylens" / "kernels"


def _compile(instructions: InstructionSet, library: Path) -> None:
    """Compile into a temporary file beside ``library`` first: others see all of it or nothing."""
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc")
    if compiler is None:
        raise BuildError("there is no C compiler (on Debian and Ubuntu: apt-get install gcc)")
    logger.info("compiling the CPU kernels for %s, once", instructions.name)
    sources = [str(source) for source in sorted(SOURCES.glob("*.c"))]
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as folder:
        output = Path(folder) / library.name
        command = [compiler, *FLAGS, *instructions.flags, *sources, "-o", str(output), "-lm"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        if result.returncode:
            raise BuildError(f"{compiler} failed: {result.stderr.strip()[-500:]}")
        output.replace(library)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true")
    try:
        if parser.parse_args().all:
            machine = platform.machine()
            sets = [one for one in INSTRUCTION_SETS if machine in one.machines]
            with ThreadPoolExecutor(os.cpu_count()) as compilers:
                print(*compilers.map(compiled_library, sets), sep="\n")
        print(best_library())
    except BuildError as error:
        sys.exit(f"models will run on torch alone, without the faster CPU kernels: {error}")


if __name__ == "__main__":
    main()
