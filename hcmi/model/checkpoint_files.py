"""The files of a checkpoint: where they lie, whether all are there, and one line for what is wrong with them.

A checkpoint is a folder or a name on the hub. A name is turned into a folder here, once; all else reads folders.
"""

import json
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from hcmi.errors import WRITING, HcmiError, ModelError, machine_error, system_error
from hcmi.model.families import FAMILIES

BACKBONES = ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14",
             "google/siglip-base-patch16-224", "google/siglip2-base-patch16-224")       # and others of these families
CONFIG, OPEN_CLIP = "config.json", "open_clip_config.json"
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
TOKENIZERS = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")        # in the order in which `transformers` looks for them
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
TEXTS = (".json", ".txt", ".model")         # endings of the files that say how inputs are made
ANSWER_S = 10       # seconds that the hub has for an answer


def plain_name(source: str) -> str:
    """A checkpoint's folder or name without what other tools write around it: `hf-hub:` and a `/` at the end."""
    return source.removeprefix("hf-hub:").rstrip("/") or source


def is_name(source: str) -> bool:
    """Whether this is taken as a checkpoint's name on the hub: it has one `/`, and nothing here has that path.

    `models/...` is never a name: the hub has no owner of that name.
    """
    return (re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source) is not None
            and not source.startswith("models/") and not os.path.lexists(source))


def checkpoint_folder(source: str, subject: str = "model.backbone", weights: bool = True) -> Path:
    """The folder of a checkpoint, given by folder or by name.

    A name is downloaded once. While this machine's cache has all files, the hub is not asked, because an index and a
    trained model belong to the files that they were made with. `weights`: whether more is needed than the files that
    say how inputs are made. `subject`: what messages call the checkpoint.

    Raises: ModelError when there is no such checkpoint, or it cannot be downloaded.
    """
    name = plain_name(source)
    if Path(name).is_dir():
        return Path(name)
    if not is_name(name):
        raise _neither(source, subject)
    with _explain_download(source, subject):
        folder = cached_folder(name)
        if folder is not None and next(missing_files(folder), None) is None and (
                not weights or _weights_are_in(folder)):
            return folder
        info = HfApi().model_info(name, timeout=ANSWER_S)       # fails at once without a network; others try for long
        files = {file.rfilename for file in info.siblings or [] if "/" not in file.rfilename}
        folder = Path(snapshot_download(name, allow_patterns=sorted(file for file in files if file.endswith(TEXTS))))
        if weights:     # they come last: where they are, the others are
            snapshot_download(name, allow_patterns=weight_files(folder, files))
        return folder


def cached_folder(name: str) -> Path | None:
    """The folder in this machine's cache that holds a name's configuration; None when there is none."""
    found = (try_to_load_from_cache(name, file) for file in (CONFIG, OPEN_CLIP))
    return next((Path(file).parent for file in found if isinstance(file, str)), None)


def missing_files(folder: Path) -> Iterator[str]:
    """The files beside the weights that a checkpoint of a known family lacks.

    Without a tokenizer's files `transformers` may make an empty one.
    """
    own = read_open_clip(folder)
    groups: list[tuple[str, ...]] = [(CONFIG,), PREPROCESSORS, (*TOKENIZERS, "vocab.json")]
    if own is not None:
        groups = [TOKENIZERS] if open_clip_part(own, "text_cfg").get("hf_tokenizer_name") else []
    for names in groups:
        if not any((folder / file).is_file() for file in names):
            yield names[0]


def weight_files(folder: Path, files: set[str]) -> list[str]:
    """Which of `files` hold the weights, in the first format that is there; `folder` has their index if they have one.

    A repository often has the same weights in several formats.
    """
    if read_open_clip(folder) is not None:
        return [file for file in OPEN_CLIP_WEIGHTS if file in files][:1]
    for file in WEIGHTS:
        if file in files:
            return [file]
        if (parts := (read_json(folder / f"{file}.index.json") or {}).get("weight_map")):
            return sorted(set(parts.values()))
    return []


def _weights_are_in(folder: Path) -> bool:
    found = {path.name for path in folder.iterdir() if path.is_file()}
    needed = weight_files(folder, found)
    return bool(needed) and found.issuperset(needed)


def read_open_clip(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's `open_clip_config.json`; None where there is none, or `transformers` reads the folder.

    Some folders on the hub have the files of both libraries.
    """
    config = read_json(folder / OPEN_CLIP)
    family = (read_json(folder / CONFIG) or {}).get("model_type")
    return None if config is None or (isinstance(family, str) and family in FAMILIES) else config


def open_clip_part(config: dict[str, Any], part: str) -> dict[str, Any]:
    """A part of the `model_cfg` of an open_clip_config.json; empty where it has none."""
    model = config.get("model_cfg")
    found = model.get(part) if isinstance(model, dict) else None
    return found if isinstance(found, dict) else {}


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None when there is no such file or it holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def reading(subject: str, need: str, next_step: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads the files of `subject` into one line.

    Every exception is caught. For broken or foreign files the libraries raise nearly all kinds: a KeyError for an
    unknown activation, a TypeError for a list in place of an object, errors of their own for numbers that do not fit.

    Raises: ModelError `<subject>: need <need>, got: <the library's words>. <next step>`.
    """
    try:
        yield
    except (HcmiError, MemoryError):
        raise
    except ImportError as error:        # weights in 8 bits, or another tokenizer
        raise ModelError(f"{subject}: need a Python package to read it, got none: "
                         f"{_words(error).partition('. ')[0].removesuffix('.')}. Install that package, or choose "
                         f"another checkpoint.") from error
    except (pickle.UnpicklingError, EOFError) as error:         # the libraries' advice is to run what is in the file
        raise ModelError(f"{subject}: need a file of weights alone, got another: a pointer of Git LFS, a part of a "
                         f"file, or a pickled model. Run `git lfs pull` or download the weights again.") from error
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(f"{subject}: need files that a library reads by itself, got ones that need Python code of "
                             f"their own, which is never run. Choose another checkpoint.") from error
        raise ModelError(f"{subject}: need {need}, got: {_words(error)[:300].rstrip('.')}. {next_step}") from error


def _words(error: Exception) -> str:
    """What an error says, in one line; with its kind where its words alone say little, as those of a KeyError."""
    words = " ".join(str(error).split())
    plain = isinstance(error, (ImportError, OSError, ValueError, RuntimeError)) or type(error).__module__ != "builtins"
    return words if plain and words else f"{type(error).__name__}: {words}"


def _known(subject: str) -> str:
    return f"Known: {'scratch, ' if subject == 'model.backbone' else ''}a folder, {', '.join(BACKBONES)}."


def _neither(source: str, subject: str) -> ModelError:
    return ModelError(f"{subject} {source!r}: need a folder or the name of a checkpoint, got neither. "
                      f"{_known(subject)}")


@contextmanager
def _explain_download(source: str, subject: str) -> Iterator[None]:
    or_scratch = ", or set model.backbone to scratch" if subject == "model.backbone" else ""
    try:
        yield
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise _neither(source, subject) from error
    except Exception as error:      # no network, a proxy, a broken answer: raised by libraries below huggingface_hub
        if (found := system_error(error)) is not None and found.errno in WRITING:
            raise machine_error("the cache of model.backbone", "to write it", found) from error
        raise ModelError(f"{subject} {source!r}: need a folder of this path here, a copy in this machine's cache or a "
                         f"network to download it, got none. Correct the path, or download it elsewhere and give its "
                         f"folder{or_scratch}. {_known(subject)}") from error
