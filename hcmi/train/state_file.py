"""A file that holds a training state: tensors and JSON in safetensors' format, with a checksum over both."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hcmi.errors import ModelError
from hcmi.files import atomic_file

FORMAT = 4      # raise it when what a state holds, or how the loader stores its place, changes


def write_state(path: str | Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Replace `path` by a file of these tensors, contiguous and on the CPU, and of `values`, which JSON can hold.

    Raises: MachineError when it cannot be written; `path` is then unchanged.
    """
    text = json.dumps({**values, "format": FORMAT})
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, {"values": text, "sha256": _digest(tensors, text)})


def read_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_state` wrote: tensors and values.

    Raises: ModelError when the file is missing, cut short, changed, of another format or something else. The message
    has no next step.
    """
    try:
        with safe_open(path, "pt") as file:
            described = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}     # noqa: SIM118
    except FileNotFoundError as error:
        raise _refused(path, "no such file") from error
    except (OSError, SafetensorError) as error:
        raise _refused(path, f"another or a damaged file ({' '.join(str(error).split())[:150]})") from error
    text = described.get("values", "")
    if described.get("sha256") != _digest(tensors, text):
        raise _refused(path, "another file, or one whose content was changed")
    values = json.loads(text)
    if values["format"] != FORMAT:
        raise ModelError(f"checkpoint {path}: need format {FORMAT}, got {values['format']}: another version of hcmi "
                         f"wrote it.")
    return tensors, values


def _refused(path: str | Path, got: str) -> ModelError:
    return ModelError(f"checkpoint {path}: need a file that `hcmi train` wrote, got: {got}.")


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
