"""The retriever without its towers: a head that is trained on features which frozen towers gave once and for all.

    head = HeadOnFeatures(model, {"a red ring": (0, 5)}, [states_ND])
    head.encode_videos(head.processor.frames(bytes_BT2D), mask_BT)
    head.encode_texts(*head.processor.texts(["a red ring"]))

It takes the place of the whole model in training and in validation, and shares its head with it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hcmi.model.modeling import LOCAL, HcmiConfig, HcmiModel
from hcmi.model.towers import text_features
from hcmi.types import TextTokens


class FeatureProcessor:
    """Stands for the processor of the whole model: strings become row numbers of kept states instead of token ids.

    `captions`: caption -> the row of its first token, and its number of tokens. The row after its last token is that of
    its sentence anchor.
    """

    def __init__(self, captions: Mapping[str, tuple[int, int]]):
        self._captions = captions

    def frames(self, bytes_BTN: Tensor) -> Tensor:
        """The bytes of float16 features -> float32 features, [B, T, D]."""
        return bytes_BTN.contiguous().view(torch.float16).float()

    def texts(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Row numbers and mask, [B, W], where W is the length of the longest text. Padding repeats the last row."""
        first_B, length_B = torch.tensor([self._captions[text] for text in texts]).unbind(1)
        place_W = torch.arange(int(length_B.max()))
        rows_BW = first_B[:, None] + torch.minimum(place_W, length_B[:, None] - 1)
        return rows_BW, (place_W < length_B[:, None]).long()


class HeadOnFeatures(HcmiModel):
    """The head of `whole`, on features of its towers that are kept as float16.

    `states`: one array [N, D] after the other, with the states of each caption's tokens and then its anchor.
    """

    def __init__(self, whole: HcmiModel, captions: Mapping[str, tuple[int, int]], states: Sequence[np.ndarray]):
        assert isinstance(whole.config, HcmiConfig), "the configuration is the one that HcmiModel made"
        super().__init__(whole.config, whole.towers)
        del self.towers
        self.head, self.config = whole.head, whole.config
        self.processor: Any = FeatureProcessor(captions)
        self._states = states
        self._first_rows = np.cumsum([0, *(len(part) for part in states)])

    @property
    def frames_together(self) -> int:
        """0: kept features are those of single frames."""
        return 0

    def frame_features(self, pixel_values_BTCHX: Tensor) -> Tensor:
        """The features as they are, [B, T, D]."""
        return pixel_values_BTCHX

    def encode_texts(self, input_ids_BW: Tensor, attention_mask_BW: Tensor) -> TextTokens:
        """Tokens of captions by the row numbers of their states."""
        mask_BW = attention_mask_BW.bool()
        rows_BW, last_B = input_ids_BW.cpu().numpy(), (mask_BW.sum(1) - 1).cpu().numpy()
        anchor_B = rows_BW[np.arange(len(rows_BW)), last_B] + 1
        rows_N, at = np.unique(np.concatenate([rows_BW.ravel(), anchor_B]), return_inverse=True)
        found_ND = torch.from_numpy(self._rows(rows_N)).to(input_ids_BW.device).float()
        at_N = torch.from_numpy(at.ravel()).to(input_ids_BW.device)
        states_ND = found_ND[at_N]
        states_BWD = states_ND[:rows_BW.size].view(*rows_BW.shape, -1)
        return self.head.text(states_BWD, states_ND[rows_BW.size:], mask_BW)

    def _rows(self, rows_N: np.ndarray) -> np.ndarray:
        """These rows of all states, float16 [N, D]; `rows_N` are ascending."""
        cuts = np.searchsorted(rows_N, self._first_rows)
        parts = [states_ND[rows_N[start:end] - first] for states_ND, first, start, end in
                 zip(self._states, self._first_rows[:-1], cuts[:-1], cuts[1:], strict=True) if end > start]
        return np.concatenate(parts)


def token_states(model: HcmiModel, ids_BW: Tensor, mask_BW: Tensor) -> tuple[Tensor, Tensor]:
    """What the text tower gives the head: the states of all tokens [B, W, D] and of the sentence anchor [B, D]."""
    return text_features(model.towers, ids_BW, mask_BW.bool())


def towers_hash(model: HcmiModel) -> str:
    """sha256 of all that a frame's or a text's features depend on, but for its pixels and its token ids."""
    digest = hashlib.sha256()
    config = {name: value for name, value in model.towers.config.to_dict().items() if name not in LOCAL}
    digest.update(json.dumps([config, model.processor.describe()], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.towers.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
