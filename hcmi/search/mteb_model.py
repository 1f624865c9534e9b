"""A model as the library mteb measures models (the extra `hcmi[mteb]`), to place it among published ones.

    import mteb
    from hcmi.search import MtebModel

    mteb.evaluate(MtebModel("models/hcmi"), mteb.get_benchmark("MVEB(text, video, v1)").tasks)

mteb downloads the data of its tasks, and decodes videos with torchcodec.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hcmi.errors import ModelError
from hcmi.files import project_path
from hcmi.search.encoder import Encoder
from hcmi.video import to_square

MODALITIES = ("text", "image", "video")


class MtebModel:
    """`Encoder` with the interface of mteb's `EncoderProtocol`. Vectors are those of the level video-sentence.

    Frames are picked and shaped as for every use of the model. An image is a video of one frame. Of an item that has
    several of MODALITIES the vector is the mean of their unit vectors. `name`: `owner/model`, as mteb lists it.

    Raises: ModelError as `load_retriever` does.
    """

    def __init__(self, model: str | Path = "models/hcmi", precision: str = "float32", name: str | None = None):
        self.encoder = Encoder(model, precision)
        self.name = name or f"hcmi/{Path(project_path(model)).name}"

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        """float32 [N, D] of length 1, of the N items of mteb's `DataLoader`.

        Raises: ModelError for an item without text, image or video.
        """
        inputs.collate_fn = self._collate
        return np.concatenate([self._vectors(batch) for batch in inputs])

    def similarity(self, left: Any, right: Any) -> Tensor:
        """Cosines [N, M]."""
        return _unit(left) @ _unit(right).T

    def similarity_pairwise(self, left: Any, right: Any) -> Tensor:
        """Cosines [N] of the n-th with the n-th."""
        return (_unit(left) * _unit(right)).sum(-1)

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb writes beside the results."""
        from mteb.models import ModelMeta

        model = self.encoder.model
        return ModelMeta.create_empty({
            "name": self.name, "revision": model.fingerprint[:12], "embed_dim": self.encoder.dim,
            "n_parameters": sum(weight.numel() for weight in model.parameters()), "framework": ["PyTorch"],
            "max_tokens": model.processor.num_words, "modalities": list(MODALITIES), "similarity_fn_name": "cosine"})

    def _collate(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows with videos and images as frames [T, H, X, 3] of the model's size, to bound the memory."""
        model = self.encoder.model
        made = []
        for row in rows:
            row = {name: row[name] for name in MODALITIES if row.get(name) is not None}     # a mixed task has gaps
            if "video" in row:
                row["video"] = self._shaped(_middle_frames(row["video"], model.config.num_frames))
            if "image" in row:
                frame = self._shaped([np.asarray(row["image"].convert("RGB"))])
                row["image"] = frame.repeat(model.frames_together or 1, 0)
            made.append(row)
        return made

    def _shaped(self, frames: Iterable[np.ndarray]) -> np.ndarray:
        processor = self.encoder.model.processor
        return np.stack([to_square(frame, processor.image_size, processor.square) for frame in frames])

    def _vectors(self, rows: list[dict[str, Any]]) -> np.ndarray:
        """[N, D] of length 1: of each row the mean of the vectors of what it has."""
        total_ND = torch.zeros(len(rows), self.encoder.dim)
        for name in MODALITIES:
            at = [number for number, row in enumerate(rows) if name in row]
            if at:
                items = [rows[number][name] for number in at]
                vectors = (torch.from_numpy(self.encoder.encode_texts(items)) if name == "text" else
                           self._video_vectors(np.stack(items)))
                total_ND[at] += _unit(vectors)
        if not all(rows):
            raise ModelError(f"{self.name}: need items with text, images or video, got none of them. Choose tasks with "
                             f"these modalities.")
        return _unit(total_ND).numpy()

    def _video_vectors(self, frames_BTHXC: np.ndarray) -> Tensor:
        model = self.encoder.model
        with torch.inference_mode():
            pixels = model.processor.frames(frames_BTHXC)
            return model.encode_videos(pixels, torch.ones(pixels.shape[:2], dtype=torch.bool)).video_BD


def _middle_frames(video: Any, count: int) -> list[np.ndarray]:
    """The middle frame of each of `count` equal parts, [H, X, 3], of a video as torchcodec decodes it.

    Some files claim more frames than they have. mteb's own models then take fewer, and so does this.
    """
    total = video.metadata.num_frames
    while True:
        picked = [(2 * part + 1) * total // (2 * count) for part in range(count)]
        try:
            return list(video.get_frames_at(picked).data.movedim(1, -1).numpy())
        except RuntimeError as error:
            if "no more frames" not in str(error) or total <= 1:
                raise
            total -= 1


def _unit(vectors: Any) -> Tensor:
    return F.normalize(torch.as_tensor(vectors), dim=-1)
