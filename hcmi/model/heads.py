"""The heads: HCMI, and the peers it is compared with on the same towers (docs/method.md).

A head turns frame features into `VideoTokens` and token states into `TextTokens`, and gives their similarities at its
levels. A head that does not use clips or phrases leaves those token sets empty.

To add a head: a class here and its row in `HEADS`, its name in `hcmi.config.ModelConfig.head`, and its oracle in
`tests/model/heads_by_loops.py`.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from hcmi.errors import ModelError
from hcmi.model.aggregate import (
    Aggregation,
    TemporalTransformer,
    TokenWeights,
    masked_mean,
    masked_softmax,
    zero_init,
)
from hcmi.model.interaction import TOLD_SHARE, cosine, padded_token_interaction, token_interaction
from hcmi.model.peers import ReluTokenWeights, ResidualTransformer, SimilarityAttention
from hcmi.types import TextTokens, VideoTokens

GAIN = "_gain"          # after the name of a level in `training_similarities`


class Head(nn.Module):
    """What all heads share: the towers' features in, tokens out, and a logit scale per level [ours]."""

    levels: tuple[str, ...] = ()
    # Whether training adds what HCMI has beside the plain contrastive loss: weights of the levels, a loss on their sum,
    # the margin loss, label denoising and marginal groups. Such a head needs the level `video_sentence`.
    hcmi_training = False
    # Whether `tiles` computes the same similarities. If not, inference calls `similarities` on parts of the matrix.
    scored_in_tiles = True

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.logit_scales = nn.ParameterDict({level: nn.Parameter(torch.tensor(math.log(1 / 0.07)))
                                              for level in self.levels})

    def logit_scale(self, level: str) -> Tensor:
        return self.logit_scales[level].clamp(max=math.log(100)).exp()

    def video(self, features_BTD: Tensor, mask_BT: Tensor, position_T: Tensor | None = None) -> VideoTokens:
        raise NotImplementedError

    def text(self, states_BWD: Tensor, anchor_BD: Tensor, mask_BW: Tensor) -> TextTokens:
        """Words and sentence exactly as the tower gives them."""
        return _text_tokens(anchor_BD, states_BWD, _uniform(mask_BW))

    def similarities(self, texts: TextTokens, videos: VideoTokens) -> dict[str, Tensor]:
        raise NotImplementedError

    def training_similarities(self, texts: TextTokens, videos: VideoTokens) -> dict[str, Tensor]:
        """The same for the loss (`hcmi.train`). A head may add matrices that its loss needs."""
        return self.similarities(texts, videos)


class MeanPool(Head):
    """CLIP4Clip-meanP: cosine of the mean frame and the sentence, where every frame counts by its direction alone."""

    levels: tuple[str, ...] = ("video_sentence",)

    def __init__(self, dim: int, **_):
        super().__init__(dim)

    def video(self, features_BTD, mask_BT, position_T=None):
        return _video_tokens(_mean_direction(features_BTD, mask_BT), features_BTD, _uniform(mask_BT))

    def similarities(self, texts, videos):
        return {"video_sentence": cosine(texts.sentence_BD, videos.video_BD)}


class SeqTransf(MeanPool):
    """CLIP4Clip-seqTransf: a temporal transformer with a residual connection around it, then the mean."""

    def __init__(self, dim: int, heads: int, temporal_layers: int, num_frames: int, **_):
        super().__init__(dim)
        self.temporal = ResidualTransformer(dim, heads, temporal_layers, num_frames)

    def video(self, features_BTD, mask_BT, position_T=None):
        return super().video(self.temporal(features_BTD, mask_BT, position_T), mask_BT)


class Wti(SeqTransf):
    """DRL: frame-word weighted token interaction on the temporal transformer's output."""

    levels: tuple[str, ...] = ("frame_word",)
    scored_in_tiles = False

    def __init__(self, dim: int, num_frames: int, num_words: int, **options):
        super().__init__(dim, num_frames=num_frames, **options)
        self.num_frames, self.num_words = num_frames, num_words
        self.frame_weights, self.word_weights = ReluTokenWeights(dim), ReluTokenWeights(dim)

    def video(self, features_BTD, mask_BT, position_T=None):
        frames_BTD = self.temporal(features_BTD, mask_BT, position_T)
        return _video_tokens(_mean_direction(frames_BTD, mask_BT), frames_BTD, self.frame_weights(frames_BTD, mask_BT))

    def text(self, states_BWD, anchor_BD, mask_BW):
        return _text_tokens(anchor_BD, states_BWD, self.word_weights(states_BWD, mask_BW))

    def similarities(self, texts, videos):
        return {"frame_word": padded_token_interaction(texts.words_BWD, texts.word_weights_BW, videos.frames_BTD,
                                                       videos.frame_weights_BT, self.num_words, self.num_frames)}


class XClip(SeqTransf):
    """X-CLIP: the mean of four similarities of word and sentence with frame and video; three attend over themselves.

    Frames are those of the tower. Only the vector of the whole video has passed the temporal transformer.
    """

    levels = ("multi_grained",)
    scored_in_tiles = False

    def __init__(self, dim: int, num_frames: int, num_words: int, **options):
        super().__init__(dim, num_frames=num_frames, **options)
        self.sentence_to_video_DD, self.word_to_frame_DD = (nn.Parameter(torch.eye(dim)) for _ in range(2))
        self.over_video_words, self.over_frame_words, self.over_best_words = (
            SimilarityAttention(num_words) for _ in range(3))
        self.over_sentence_frames, self.over_word_frames, self.over_best_frames = (
            SimilarityAttention(num_frames) for _ in range(3))

    def video(self, features_BTD, mask_BT, position_T=None):
        frames_BTD = self.temporal(features_BTD, mask_BT, position_T)
        return _video_tokens(_mean_direction(frames_BTD, mask_BT), features_BTD, _uniform(mask_BT))

    def similarities(self, texts, videos):
        word_mask_QW, frame_mask_VT = texts.word_weights_BW > 0, videos.frame_weights_BT > 0
        word_mask_Q1W, frame_mask_1VT = word_mask_QW[:, None], frame_mask_VT[None]
        # bfloat16 would round a similarity by up to 0.004, and the attention divides it by 0.01
        with torch.autocast(texts.words_BWD.device.type, enabled=False):
            video_word_QVW = torch.einsum("qwd,vd->qvw", texts.words_BWD, videos.video_BD)
            frame_sentence_QVT = torch.einsum("qd,vtd->qvt", texts.sentence_BD, videos.frames_BTD)
            frame_word_QVTW = torch.einsum("qwd,vtd->qvtw", texts.words_BWD @ self.word_to_frame_DD, videos.frames_BTD)
            by_words_QVT = self.over_frame_words(frame_word_QVTW, word_mask_Q1W[:, None])
            by_frames_QVW = self.over_word_frames(frame_word_QVTW.transpose(2, 3), frame_mask_1VT[:, :, None])
            four_4QV = torch.stack([cosine(texts.sentence_BD @ self.sentence_to_video_DD, videos.video_BD),
                                    self.over_video_words(video_word_QVW, word_mask_Q1W),
                                    self.over_sentence_frames(frame_sentence_QVT, frame_mask_1VT),
                                    (self.over_best_frames(by_words_QVT, frame_mask_1VT)
                                     + self.over_best_words(by_frames_QVW, word_mask_Q1W)) / 2])
            return {"multi_grained": four_4QV.mean(0)}


class Hcmi(Head):
    """Three levels of video and text: frame-word, clip-phrase, video-sentence.

    Before any training step the video-sentence score is CLIP's own: mean of the unit frame embeddings against the
    end-of-text embedding. The sentence is the anchor plus a gated aggregate of the phrases. The gate starts at zero.

    A text may tell a whole video or a part of it. `coverage` estimates from the sentence how much it tells, from 0 to
    2, and starts at 1. It is the length of the sentence's vector. [ours]

    - Frame-word is `shown + coverage / 4 (told - shown)`, the sides of `token_interaction`; clip-phrase is the same of
      clips and phrases. At 0, what else a video shows costs nothing, so a text of one event finds a video of many. At
      2, both sides count alike, as in DRL: the text must also tell what the video shows.
    - Video-sentence is the cosine times `coverage`. One vector cannot hold every part of a video, so this level ranks a
      text of a whole video well and a text of a part badly.

    Words and frames get only the share `coarse_gradient` of the coarser levels' gradient, because in shared features
    the coarser levels pull apart what the finest one needs. [ours]
    """

    levels = ("frame_word", "clip_phrase", "video_sentence")
    hcmi_training = True

    def __init__(self, dim: int, heads: int, temporal_layers: int, num_frames: int, num_clips: int, num_phrases: int,
                 aggregation: str = "assign", coarse_gradient: float = 1.0, **_):
        super().__init__(dim)
        self.coarse_gradient = coarse_gradient
        self.temporal = TemporalTransformer(dim, heads, temporal_layers, num_frames)
        self.frame_weights, self.clip_weights, self.word_weights, self.phrase_weights = (
            TokenWeights(dim) for _ in range(4))
        self.to_clips, self.to_video, self.to_phrases, self.to_sentence = (
            Aggregation(dim, heads, slots, aggregation) for slots in (num_clips, 1, num_phrases, 1))
        self.sentence_gate_D = nn.Parameter(torch.zeros(dim))
        self.coverage = zero_init(nn.Linear(dim, 1))

    def to_unit_variance(self, features: Tensor) -> Tensor:
        """Features of length sqrt(D), so that one step of a new layer is small beside a pretrained feature. [ours]"""
        return F.normalize(features.float(), dim=-1).to(features.dtype) * math.sqrt(self.dim)

    def video(self, features_BTD, mask_BT, position_T=None):
        frames_BTD = self.temporal(self.to_unit_variance(features_BTD), mask_BT, position_T)
        clips_BCD = self.to_clips(_scale_gradient(frames_BTD, self.coarse_gradient), mask_BT)
        all_BC = torch.ones(clips_BCD.shape[:2], dtype=torch.bool, device=clips_BCD.device)
        video_BD = self.to_video(clips_BCD, all_BC)[:, 0]
        return _video_tokens(video_BD, frames_BTD, self.frame_weights(frames_BTD, mask_BT), clips_BCD,
                             self.clip_weights(clips_BCD, all_BC))

    def text(self, states_BWD, anchor_BD, mask_BW):
        words_BWD = self.to_unit_variance(states_BWD)
        phrases_BPD = self.to_phrases(_scale_gradient(words_BWD, self.coarse_gradient), mask_BW)
        all_BP = torch.ones(phrases_BPD.shape[:2], dtype=torch.bool, device=phrases_BPD.device)
        anchor_BD = _scale_gradient(self.to_unit_variance(anchor_BD), self.coarse_gradient)
        sentence_BD = anchor_BD + self.sentence_gate_D * self.to_sentence(phrases_BPD, all_BP)[:, 0]
        coverage_B1 = 2 * self.coverage(self.to_unit_variance(sentence_BD).detach()).float().sigmoid()
        texts = _text_tokens(sentence_BD, words_BWD, self.word_weights(words_BWD, mask_BW), phrases_BPD,
                             self.phrase_weights(phrases_BPD, all_BP))
        return replace(texts, sentence_BD=texts.sentence_BD * coverage_B1)

    def similarities(self, texts, videos):
        coverage_Q1 = texts.sentence_BD.norm(dim=1, keepdim=True)
        return {level: sims_QV + coverage_Q1 * gain_QV
                for level, (sims_QV, gain_QV) in self._by_coverage(texts, videos).items()}

    def training_similarities(self, texts, videos):
        """The levels without a gradient for `coverage`, and `<level>_gain`: how much the level grows with it.

        Video-sentence is the plain cosine. The gains have no gradient.
        """
        coverage_Q1 = texts.sentence_BD.norm(dim=1, keepdim=True).detach()
        found = {}
        for level, (sims_QV, gain_QV) in self._by_coverage(texts, videos).items():
            found[level] = gain_QV if level == "video_sentence" else sims_QV + coverage_Q1 * gain_QV
            found[level + GAIN] = gain_QV.detach()
        return found

    def _by_coverage(self, texts: TextTokens, videos: VideoTokens) -> dict[str, tuple[Tensor, Tensor]]:
        """Level -> its similarities at a coverage of 0, and how much they grow with it, [Q, V] each."""
        plain_QV = cosine(_unit(texts.sentence_BD), videos.video_BD)
        found = {"video_sentence": (torch.zeros_like(plain_QV), plain_QV)}
        fine = texts.words_BWD, texts.word_weights_BW, videos.frames_BTD, videos.frame_weights_BT
        coarse = texts.phrases_BPD, texts.phrase_weights_BP, videos.clips_BCD, videos.clip_weights_BC
        for level, token_sets in (("frame_word", fine), ("clip_phrase", coarse)):
            shown_QV, told_QV = token_interaction(*token_sets)
            found[level] = shown_QV, TOLD_SHARE * (told_QV - shown_QV)
        return {level: found[level] for level in self.levels}


HEADS: dict[str, type[Head]] = {"hcmi": Hcmi, "mean_pool": MeanPool, "seq_transf": SeqTransf, "wti": Wti,
                                "xclip": XClip}


def build_head(name: str, **options) -> Head:
    """Raises: ModelError for an unknown head, naming the known ones."""
    if name not in HEADS:
        raise ModelError(f"model.head {name!r}: need one of {', '.join(HEADS)}, got {name!r}. Correct model.head.")
    return HEADS[name](**options)


def _scale_gradient(tokens: Tensor, share: float) -> Tensor:
    """The same tokens, with their gradient multiplied by `share`."""
    return torch.lerp(tokens.detach(), tokens, share)


def _uniform(mask_BN: Tensor) -> Tensor:
    """Equal weights for all valid tokens."""
    return masked_softmax(torch.zeros_like(mask_BN, dtype=torch.float32), mask_BN)


def _mean_direction(frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return masked_mean(_unit(frames_BTD), mask_BT)


def _video_tokens(video_BD, frames_BTD, frame_weights_BT, clips_BCD=None, clip_weights_BC=None) -> VideoTokens:
    if clips_BCD is None:
        clips_BCD, clip_weights_BC = frames_BTD[:, :0], frame_weights_BT[:, :0]
    return VideoTokens(_unit(video_BD), _unit(frames_BTD), _unit(clips_BCD), frame_weights_BT, clip_weights_BC)


def _text_tokens(sentence_BD, words_BWD, word_weights_BW, phrases_BPD=None, phrase_weights_BP=None) -> TextTokens:
    if phrases_BPD is None:
        phrases_BPD, phrase_weights_BP = words_BWD[:, :0], word_weights_BW[:, :0]
    return TextTokens(_unit(sentence_BD), _unit(words_BWD), _unit(phrases_BPD), word_weights_BW, phrase_weights_BP)


def _unit(tokens: Tensor) -> Tensor:
    """Scale to length 1, in float32 whatever the tower's precision."""
    return F.normalize(tokens.float(), dim=-1)
