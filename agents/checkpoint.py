"""Checkpoints: the whole state of a training run in one file, written so that none is ever half.

`checkpoint.msgpack` is everything (weights, optimiser, replay, archive, games under way, keys,
counters): training goes on as if it had not stopped. `best.msgpack` is the weights alone as they
were when they played best, in the mean of games or on programs kept apart: for playing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization

from agents.config import AgentConfig
from hlo_graphs.errors import InputError

CHECKPOINT = "checkpoint.msgpack"
BEST = "best.msgpack"
_VERSION = 3


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Writes nested dicts and lists of arrays, numbers and text; whole or not at all.

    Raises:
      InputError: if the folder cannot be written, or is full.
    """
    packed = serialization.msgpack_serialize({"version": _VERSION, **_numbered(document)})
    # Of one name: what a kill leaves of it is written over by the next.
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(packed)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot write there: {error.strerror}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_document(path: Path) -> dict[str, Any]:
    """What `write_document` wrote.

    Raises:
      InputError: if there is no such file, or it is not one of ours.
    """
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}") from error
    try:
        document = serialization.msgpack_restore(packed)
        version = document.pop("version")
    except Exception as error:
        raise InputError(f"{path}: not a checkpoint of ours") from error
    if version != _VERSION:
        raise InputError(f"{path}: is of version {version}, this reads version {_VERSION}")
    restored: dict[str, Any] = _listed(document)
    return restored


def write_weights(path: Path, config: AgentConfig, params: Any, *, half: bool = False) -> None:
    """Writes what playing needs: the settings and the weights, in half precision if asked to."""
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16 if half else None), params)
    write_document(path, {"config": config.to_document(), "params": weights})


def read_weights(path: Path) -> tuple[AgentConfig, Any]:
    """Settings and float32 weights, of a weights file, of a checkpoint, or of a run's folder.

    Raises:
      InputError: see `read_document`.
    """
    if path.is_dir():
        path = path / BEST if (path / BEST).exists() else path / CHECKPOINT
    document = read_document(path)
    params = document["params"] if "params" in document else document["learner"]["params"]
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    return AgentConfig.from_document(document["config"]), weights


_LIST = "__list__"


def _numbered(value: Any) -> Any:
    """Lists as dicts by number: the format keeps lists as tuples of leaves only."""
    if isinstance(value, dict):
        return {str(key): _numbered(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return {_LIST: len(value), **{str(i): _numbered(item) for i, item in enumerate(value)}}
    return value


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if _LIST in value:
        return [_listed(value[str(i)]) for i in range(int(value[_LIST]))]
    return {key: _listed(item) for key, item in value.items()}
