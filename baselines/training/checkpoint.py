"""Checkpoints: folders renamed into place, weights as safetensors, the rest loadable without running any code."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ...data_specs.errors import ModelError, OutputError

WEIGHTS, TRAINING = "weights.safetensors", "training.pt"
LAST, BEST = "last", "best"
_PART, _OLD = ".part-", ".old-"


def save_checkpoint(
    root: Path,
    name: str,
    *,
    weights: Mapping[str, torch.Tensor],
    training: Mapping[str, Any] | None = None,
    write_more: Callable[[Path], None] | None = None,
) -> Path:
    """Write the checkpoint `root`/`name`, replacing an older one only when the new one is complete.

    Parameters
    ----------
    weights
        The module's state dict; any device.
    training
        What a resume needs: tensors, numbers, text, lists, dicts.
    write_more
        Writes further files into the folder.

    Raises
    ------
    ModelError
        A weight is NaN or infinite; the older checkpoint stays.
    OutputError
        The folder cannot be written; the older checkpoint stays.
    """
    from safetensors.torch import save

    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
    broken = not_finite(tensors)
    if broken:
        raise ModelError(
            f"{len(broken)} of {len(tensors)} weights are not finite (first: {broken[0]}); not saved."
        )
    with _replaced_folder(root, name) as part:
        # Both go through memory: their own writers report a full disk in ways of their own.
        (part / WEIGHTS).write_bytes(save(tensors))
        if training is not None:
            buffer = io.BytesIO()
            torch.save(dict(training), buffer)
            (part / TRAINING).write_bytes(buffer.getbuffer())
        if write_more is not None:
            write_more(part)
    return root / name


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors with a NaN or infinite value, in order."""
    return [key for key, value in tensors.items() if not bool(torch.isfinite(value).all())]


@contextmanager
def _replaced_folder(root: Path, name: str) -> Iterator[Path]:
    root.mkdir(parents=True, exist_ok=True)
    part, old, target = root / f"{_PART}{name}", root / f"{_OLD}{name}", root / name
    if find_checkpoint(root, name) is not None:
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        yield part
        for file in part.iterdir():
            _sync(file)
        if target.exists() and not _exchange(part, target):
            # Where the system cannot swap two folders, a kill between these lines leaves `old`, which is found.
            target.rename(old)
        if part.exists() and not target.exists():
            part.rename(target)
        _sync(root)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        find_checkpoint(root, name)
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or error
        raise OutputError(f"{target}: cannot be written ({reason}); the checkpoint before stays.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(left: Path, right: Path) -> bool:
    """Swap two folders in one step where the system can (Linux); False where it cannot."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    here, exchange_flag = -100, 2
    return swap is not None and swap(here, os.fsencode(left), here, os.fsencode(right), exchange_flag) == 0


def find_checkpoint(root: Path, name: str) -> Path | None:
    """The checkpoint folder, put back first when a kill during a replacement left it aside; None without one."""
    target, old = root / name, root / f"{_OLD}{name}"
    if not target.exists() and old.exists():
        # Another process may be doing the same.
        with suppress(FileNotFoundError):
            old.rename(target)
    return target if target.is_dir() else None


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint, on the CPU. Raises `ModelError` when the file is broken or not finite."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"{folder / WEIGHTS}: not readable weights ({error}).") from error
    broken = not_finite(tensors)
    if broken:
        raise ModelError(f"{folder / WEIGHTS}: {len(broken)} weights are not finite (first: {broken[0]}).")
    return tensors


def load_into(module: torch.nn.Module, folder: Path) -> None:
    """Load a checkpoint's weights into a module. Raises `ModelError` when names or shapes differ."""
    tensors = load_weights(folder)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(f"{folder / WEIGHTS}: weights of another model ({error}).") from error


def load_training(folder: Path) -> dict[str, Any]:
    """The training state of a checkpoint, on the CPU. Nothing in the file is executed.

    Raises
    ------
    ModelError
        The file is missing, broken, or holds anything but tensors, numbers, text, lists and dicts.
    """
    file = folder / TRAINING
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{file}: not a training state that vcbench wrote ({text}).") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file}: not a training state that vcbench wrote (a {type(found).__name__}).")
    return found
