"""Each head written in loops over the tokens of one text and one video, without padding, in double precision.

`frames` and `words` are the tower's features of the valid tokens; the head gives its weights alone. The peers follow
the formulas of their public code.
"""

import math

import numpy as np
import torch
from torch import Tensor

from hcmi.model.heads import Head


def unit(vector) -> np.ndarray:
    return vector / math.sqrt(sum(x * x for x in vector))


def unit_variance(vectors) -> list[np.ndarray]:
    return [math.sqrt(len(vector)) * unit(vector) for vector in vectors]


def softmax(values) -> np.ndarray:
    powers = [math.exp(value - max(values)) for value in values]
    return np.array([power / sum(powers) for power in powers])


def gelu(vector) -> np.ndarray:
    return np.array([0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) for x in vector])


def quick_gelu(vector) -> np.ndarray:
    return np.array([x / (1 + math.exp(-1.702 * x)) for x in vector])


def relu(vector) -> np.ndarray:
    return np.array([max(x, 0) for x in vector])


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def linear(layer, vector) -> np.ndarray:
    return numbers(layer.weight) @ vector + numbers(layer.bias)


def layer_norm(layer, vector, eps: float = 1e-5) -> np.ndarray:
    centred = vector - vector.mean()
    return numbers(layer.weight) * centred / math.sqrt((centred**2).mean() + eps) + numbers(layer.bias)


def self_attention(layer, tokens, eps: float = 1e-5) -> list[np.ndarray]:
    dim = len(tokens[0])
    size = dim // layer.heads
    queries_keys_values = [linear(layer.qkv, layer_norm(layer.norm, token, eps)) for token in tokens]
    mixed = []
    for here, token in zip(queries_keys_values, tokens, strict=True):
        joined = []
        for start in range(0, dim, size):
            query = here[start:start + size]
            keys = [there[dim + start:dim + start + size] for there in queries_keys_values]
            values = [there[2 * dim + start:2 * dim + start + size] for there in queries_keys_values]
            shares = softmax([query @ key / math.sqrt(size) for key in keys])
            joined.extend(sum(share * value for share, value in zip(shares, values, strict=True)))
        mixed.append(token + linear(layer.out, np.array(joined)))
    return mixed


def feed_forward(layer, token, activation=gelu, eps: float = 1e-5) -> np.ndarray:
    norm, first, _, second = layer.layers
    return token + linear(second, activation(linear(first, layer_norm(norm, token, eps))))


def mean(vectors) -> np.ndarray:
    return sum(vectors) / len(vectors)


# the peers

def residual_transformer(module, frames) -> list[np.ndarray]:
    """CLIP4Clip, X-CLIP, DRL: x + T(x + position), with CLIP's blocks; their layer norm adds 1e-12."""
    hidden = [frame + position for frame, position in zip(frames, numbers(module.positions_TD), strict=False)]
    for attention, feed in module.layers:
        hidden = [feed_forward(feed, token, quick_gelu, 1e-12) for token in self_attention(attention, hidden, 1e-12)]
    return [frame + token for frame, token in zip(frames, hidden, strict=True)]


def mean_pool(head, frames, words, anchor) -> dict[str, float]:
    return {"video_sentence": unit(anchor) @ unit(mean([unit(frame) for frame in frames]))}


def seq_transf(head, frames, words, anchor) -> dict[str, float]:
    return mean_pool(head, residual_transformer(head.temporal, frames), words, anchor)


def relu_weights(module, tokens) -> np.ndarray:
    first, _, second = module.layers
    return softmax([float(linear(second, relu(linear(first, token)))[0]) for token in tokens])


def wti(head, frames, words, anchor) -> dict[str, float]:
    """DRL: the table of similarities has as many rows and columns as texts and videos are padded to; padding is 0."""
    frames = residual_transformer(head.temporal, frames)
    table = [[0.0] * max(head.num_frames, len(frames)) for _ in range(max(head.num_words, len(words)))]
    for row, word in enumerate(words):
        for column, frame in enumerate(frames):
            table[row][column] = unit(word) @ unit(frame)
    by_word = sum(weight * max(table[row]) for row, weight in enumerate(relu_weights(head.word_weights, words)))
    by_frame = sum(weight * max(row[column] for row in table)
                   for column, weight in enumerate(relu_weights(head.frame_weights, frames)))
    return {"frame_word": (by_word + by_frame) / 2}


def attended(layer, values) -> float:
    """X-CLIP: similarities summed with weights, the softmax of themselves at temperature 0.01 times a matrix."""
    shares, matrix = softmax([value / 0.01 for value in values]), numbers(layer.matrix_NN)
    total = 0.0
    for column, value in enumerate(values):
        total += value * sum(share * matrix[row, column] for row, share in enumerate(shares))
    return total


def xclip(head, frames, words, anchor) -> dict[str, float]:
    """Frames are compared as the tower gives them; the video is the mean of those after the temporal transformer."""
    video = unit(mean([unit(frame) for frame in residual_transformer(head.temporal, frames)]))
    frames, words, sentence = [unit(frame) for frame in frames], [unit(word) for word in words], unit(anchor)
    table = [[word @ numbers(head.word_to_frame_DD) @ frame for frame in frames] for word in words]
    by_frame = [attended(head.over_frame_words, [row[column] for row in table]) for column in range(len(frames))]
    by_word = [attended(head.over_word_frames, row) for row in table]
    four = [sentence @ numbers(head.sentence_to_video_DD) @ video,
            attended(head.over_video_words, [word @ video for word in words]),
            attended(head.over_sentence_frames, [sentence @ frame for frame in frames]),
            (attended(head.over_best_frames, by_frame) + attended(head.over_best_words, by_word)) / 2]
    return {"multi_grained": sum(four) / 4}


# HCMI

def neighbour_mix(layer, frames) -> list[np.ndarray]:
    normed, last = [layer_norm(layer.norm, frame) for frame in frames], len(frames) - 1
    return [frame + linear(layer.mix, np.concatenate([normed[max(at - 1, 0)], normed[at], normed[min(at + 1, last)]]))
            for at, frame in enumerate(frames)]


def temporal(module, frames) -> list[np.ndarray]:
    positions = numbers(module.positions_TD)[:len(frames)]
    hidden = [frame + position for frame, position in zip(frames, positions, strict=True)]
    for neighbours, attention, feed in module.layers:
        hidden = [feed_forward(feed, token) for token in self_attention(attention, neighbour_mix(neighbours, hidden))]
    return [token - position for token, position in zip(hidden, positions, strict=True)]


def token_weights(module, tokens) -> np.ndarray:
    norm, first, _, second = module.layers
    return softmax([float(linear(second, gelu(linear(first, layer_norm(norm, token))))[0]) for token in tokens])


def aggregate(layer, tokens) -> list[np.ndarray]:
    """Slot c has the time from c/S to (c+1)/S, 80 % by overlap and 20 % spread, times what the layer has learned."""
    tokens = self_attention(layer.attention, tokens)
    norm, first, _, second = layer.assign
    learned = [linear(second, gelu(linear(first, layer_norm(norm, token)))) for token in tokens]
    coarse, part = [], len(tokens) / layer.slots
    for slot in range(layer.slots):
        logits = []
        for place, logit in enumerate(learned):
            overlap = max(0.0, min(place + 1, (slot + 1) * part) - max(place, slot * part))
            logits.append(math.log(0.8 * overlap / part + 0.2 / len(tokens)) + logit[slot])
        mixed = sum(share * token for share, token in zip(softmax(logits), tokens, strict=True))
        coarse.append(feed_forward(layer.feed_forward, mixed))
    return coarse


def mixed(words, word_weights, frames, frame_weights, told_share) -> float:
    table = [[unit(word) @ unit(frame) for frame in frames] for word in words]
    shown = sum(weight * max(row) for weight, row in zip(word_weights, table, strict=True))
    told = sum(weight * max(row[column] for row in table) for column, weight in enumerate(frame_weights))
    return (1 - told_share) * shown + told_share * told


def hcmi(head, frames, words, anchor) -> dict[str, float]:
    frames, words = temporal(head.temporal, unit_variance(frames)), unit_variance(words)
    clips, phrases = aggregate(head.to_clips, frames), aggregate(head.to_phrases, words)
    video, whole = aggregate(head.to_video, clips)[0], aggregate(head.to_sentence, phrases)[0]
    sentence = unit_variance([anchor])[0] + numbers(head.sentence_gate_D) * whole
    tells = coverage(head.coverage, sentence)
    return {"frame_word": mixed(words, token_weights(head.word_weights, words), frames,
                                token_weights(head.frame_weights, frames), tells / 4),
            "clip_phrase": mixed(phrases, token_weights(head.phrase_weights, phrases), clips,
                                 token_weights(head.clip_weights, clips), tells / 4),
            "video_sentence": tells * (unit(sentence) @ unit(video))}


def coverage(layer, sentence) -> float:
    return 2 / (1 + math.exp(-linear(layer, unit_variance([sentence])[0])[0]))


ORACLES = {"mean_pool": mean_pool, "seq_transf": seq_transf, "wti": wti, "xclip": xclip, "hcmi": hcmi}


def oracle_scores(head: Head, name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """By loops: texts as rows, videos as columns, each pair alone and without padding."""
    rows = []
    for states_WD, anchor_D, word_mask_W in zip(inputs["states_BWD"], inputs["anchor_BD"], inputs["word_mask_BW"],
                                                strict=True):
        row = []
        for features_TD, frame_mask_T in zip(inputs["features_BTD"], inputs["frame_mask_BT"], strict=True):
            row.append(ORACLES[name](head, list(numbers(features_TD[frame_mask_T])),
                                     list(numbers(states_WD[word_mask_W])), numbers(anchor_D)))
        rows.append(row)
    return {level: torch.tensor([[cell[level] for cell in row] for row in rows]).float() for level in rows[0][0]}


def assert_levels_equal(found: dict[str, Tensor], needed: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    assert set(found) == set(needed), f"need the levels {sorted(needed)}, got {sorted(found)}"
    for level, sims_QV in needed.items():
        assert found[level].shape == sims_QV.shape, f"{level}: need {tuple(sims_QV.shape)}, got {found[level].shape}"
        worst = (found[level] - sims_QV).abs().max()
        assert worst <= tolerance, f"{level}: off by {worst}"
