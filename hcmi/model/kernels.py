"""Triton kernels of `fused`: token scores stay on the chip. Only `fused` imports this module, and only with Triton.

Both kernels are matrix products with work before or after them. What they know about cost (decision 18):

- Reshaping a tile needs sizes that are powers of two. 12 frames as 16 would waste a quarter of all products, so a tile
  takes `FRAMES_CHUNK` = 4 frames of many videos and is computed 3 times, with a running maximum. Words likewise.
- Columns are frame-major in a tile, so each thread has all frames of its videos and compares them without its
  neighbours. Rows are text-major: the words of a text stay within one or two warps.
- Every sum has one fixed order and there are no atomic additions, so a kernel repeats its results bit by bit.
"""

import os
from inspect import signature

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")   # Triton runs kernels on the CPU, for tests
# Token sets per step of `gradient_kernel`, for one side's choices and for both: what the registers of an H100 hold. Not
# tuned, because it is part of the order of the sums: two runs must not differ in it.
SETS = {False: 32, True: 16}


def _tiles(*sizes: tuple[int, int, int, int, int]) -> list[triton.Config]:
    return [triton.Config({"ROWS": rows, "COLUMNS": columns, "BLOCK_D": depth}, num_warps=warps, num_stages=stages)
            for rows, columns, depth, warps, stages in sizes]


def _slices(*sizes: tuple[int, int, int, int]) -> list[triton.Config]:
    return [triton.Config({"ROWS": rows, "BLOCK_D": depth}, num_warps=warps, num_stages=stages)
            for rows, depth, warps, stages in sizes]


FORWARD = _tiles((32, 16, 16, 4, 1)) if INTERPRETED.value else _tiles(
    (256, 128, 64, 8, 3), (128, 256, 64, 8, 3), (128, 128, 64, 8, 4), (128, 64, 64, 4, 4), (128, 128, 32, 8, 3),
    (64, 64, 32, 4, 3))
BACKWARD = _slices((32, 16, 4, 1)) if INTERPRETED.value else _slices(
    (128, 256, 8, 3), (128, 128, 8, 3), (128, 128, 8, 2), (64, 128, 4, 3), (64, 64, 4, 3))


# On disk, so that a run that starts again uses the same tiles; older Triton has no such switch.
REMEMBERED = {"cache_results": True} if "cache_results" in signature(triton.autotune).parameters else {}


def _that_fit(configs: list[triton.Config], arguments: dict, **options) -> list[triton.Config]:
    """Tiles that hold one chunk of either side."""
    chunks = {**arguments, **options}
    return [config for config in configs if config.kwargs["ROWS"] >= chunks["WORDS_CHUNK"]
            and config.kwargs["COLUMNS"] >= chunks["FRAMES_CHUNK"]]


@triton.jit
def _larger(a, b):
    """The larger number, or NaN where one is NaN: a model that diverges must not score well."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _product(a, b, sums, PRECISION: tl.constexpr):
    if INTERPRETED:     # Triton 3.9's interpreter multiplies the bit patterns of bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION)


@triton.jit
def _scores(row_pointers_R, column_pointers_C, is_word_R, is_frame_C, D: tl.constexpr, BLOCK_D: tl.constexpr,
            PRECISION: tl.constexpr):
    """[R, C]. Padding is not even read: it may hold anything."""
    depth_D = tl.arange(0, BLOCK_D)
    sims_RC = tl.zeros([row_pointers_R.shape[0], column_pointers_C.shape[0]], tl.float32)
    for first_d in range(0, D, BLOCK_D):
        inside_D = first_d + depth_D < D
        words_RD = tl.load(row_pointers_R[:, None] + (first_d + depth_D)[None, :],
                           mask=is_word_R[:, None] & inside_D[None, :], other=0)
        frames_DC = tl.load(column_pointers_C[None, :] + (first_d + depth_D)[:, None],
                            mask=is_frame_C[None, :] & inside_D[:, None], other=0)
        sims_RC = _product(words_RD, frames_DC, sims_RC, PRECISION)
    return sims_RC


@triton.jit
def _best(sims, number, KEEP: tl.constexpr, NOTHING: tl.constexpr):
    """The maximum over dimension 1, and with `KEEP` the number of the first token that has it: `NOTHING` for -inf."""
    best = tl.reduce(sims, 1, _larger)
    first = tl.zeros_like(best).to(tl.int32)
    if KEEP:
        first = tl.min(tl.where(sims == best[:, None, :], number[None, :, None], NOTHING), 1)
        first = tl.where(best == float("-inf"), NOTHING, first)
    return best, first


@triton.jit
def _keep(index, best, place, inside, chosen, value):
    tl.store(index + place, chosen.to(index.dtype.element_ty), mask=inside)
    tl.store(best + place, value.to(best.dtype.element_ty), mask=inside)


@triton.autotune(FORWARD, key=["WORDS_CHUNK", "FRAMES_CHUNK", "D", "BOTH", "KEEP"],
                 prune_configs_by={"early_config_prune": _that_fit}, **REMEMBERED)
@triton.jit(do_not_specialize=["Q", "W", "V", "T"])
def interaction_kernel(
        texts, text_weights, videos, video_weights, text_order, num_words_Q, num_frames_V,      # read
        words_out, frames_out, word_index, word_best, frame_index, frame_best,                  # written
        Q, W, V, T, texts_q, texts_w, videos_v, videos_t,                                       # sizes and strides
        D: tl.constexpr, WORDS_CHUNK: tl.constexpr, FRAMES_CHUNK: tl.constexpr, BOTH: tl.constexpr, KEEP: tl.constexpr,
        NOTHING: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        BLOCK_D: tl.constexpr):
    """Scores of a tile of texts and a tile of videos.

    `words_out` [Q, V]: sum_w u_w max_t; with `BOTH` `frames_out` [Q, V]: sum_t v_t max_w, for which one chunk must hold
    all words. With `KEEP` the place and the value of each maximum: `word_*` [Q, W, V] and `frame_*` [Q, V, T].
    """
    TEXTS: tl.constexpr = ROWS // WORDS_CHUNK
    VIDEOS: tl.constexpr = COLUMNS // FRAMES_CHUNK
    text_tile, video_tile = tl.swizzle2d(tl.program_id(0) // tl.cdiv(V, VIDEOS), tl.program_id(0) % tl.cdiv(V, VIDEOS),
                                         tl.cdiv(Q, TEXTS), tl.cdiv(V, VIDEOS), 8)
    row_R, column_C = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    place_R, place_Q = text_tile * TEXTS + row_R // WORDS_CHUNK, text_tile * TEXTS + tl.arange(0, TEXTS)
    text_R = tl.load(text_order + place_R, mask=place_R < Q, other=0).to(tl.int64)
    text_Q = tl.load(text_order + place_Q, mask=place_Q < Q, other=0).to(tl.int64)
    video_C = (video_tile * VIDEOS + column_C % VIDEOS).to(tl.int64)
    video_V = (video_tile * VIDEOS + tl.arange(0, VIDEOS)).to(tl.int64)
    most_words = tl.max(tl.load(num_words_Q + text_Q, mask=place_Q < Q, other=0), 0)
    most_frames = tl.max(tl.load(num_frames_V + video_V, mask=video_V < V, other=0), 0)

    words_QV = tl.zeros([TEXTS, VIDEOS], tl.float32)
    frames_QV = tl.zeros([TEXTS, VIDEOS], tl.float32)
    for first_word in range(0, tl.maximum(most_words, 1), WORDS_CHUNK):
        word_R = first_word + row_R % WORDS_CHUNK
        weight_R = tl.load(text_weights + text_R * W + word_R, mask=(place_R < Q) & (word_R < W), other=0)
        best_RV = tl.full([ROWS, VIDEOS], float("-inf"), tl.float32)
        index_RV = tl.full([ROWS, VIDEOS], NOTHING, tl.int32)
        for first_frame in range(0, most_frames, FRAMES_CHUNK):
            frame_C = first_frame + column_C // VIDEOS
            weight_C = tl.load(video_weights + video_C * T + frame_C, mask=(video_C < V) & (frame_C < T), other=0)
            sims_RC = _scores(texts + text_R * texts_q + word_R * texts_w,
                              videos + video_C * videos_v + frame_C * videos_t, weight_R > 0, weight_C > 0, D, BLOCK_D,
                              PRECISION)
            sims_RTV = tl.reshape(tl.where((weight_C > 0)[None, :], sims_RC, float("-inf")),
                                  [ROWS, FRAMES_CHUNK, VIDEOS])
            new_RV, first_RV = _best(sims_RTV, first_frame + tl.arange(0, FRAMES_CHUNK), KEEP, NOTHING)
            index_RV = tl.where(new_RV > best_RV, first_RV, index_RV)
            best_RV = _larger(best_RV, new_RV)
            if BOTH:
                sims_QWC = tl.reshape(tl.where((weight_R > 0)[:, None], sims_RC, float("-inf")),
                                      [TEXTS, WORDS_CHUNK, COLUMNS])
                best_QC, index_QC = _best(sims_QWC, tl.arange(0, WORDS_CHUNK), KEEP, NOTHING)
                best_QC = tl.where(best_QC == float("-inf"), -1.0, best_QC)
                frames_QV += tl.sum(tl.reshape(best_QC * weight_C[None, :], [TEXTS, FRAMES_CHUNK, VIDEOS]), 1)
                if KEEP:
                    _keep(frame_index, frame_best, (text_Q[:, None] * V + video_C[None, :]) * T + frame_C[None, :],
                          (place_Q < Q)[:, None] & ((video_C < V) & (frame_C < T))[None, :], index_QC, best_QC)
        best_RV = tl.where(best_RV == float("-inf"), -1.0, best_RV)
        words_QV += tl.sum(tl.reshape(best_RV * weight_R[:, None], [TEXTS, WORDS_CHUNK, VIDEOS]), 1)
        if KEEP:
            _keep(word_index, word_best, (text_R * W + word_R)[:, None] * V + video_V[None, :],
                  ((place_R < Q) & (word_R < W))[:, None] & (video_V < V)[None, :], index_RV, best_RV)

    inside_QV = (place_Q < Q)[:, None] & (video_V < V)[None, :]
    tl.store(words_out + text_Q[:, None] * V + video_V[None, :], words_QV, mask=inside_QV)
    if BOTH:
        tl.store(frames_out + text_Q[:, None] * V + video_V[None, :], frames_QV, mask=inside_QV)


# These follow the sizes of a batch: a kernel for each alignment would be compiled in the middle of training.
_STRIDES = ["own_index_a", "own_index_n", "own_index_b", "own_gradient_a", "own_gradient_b", "other_index_a",
            "other_index_b", "other_index_m", "other_gradient_a", "other_gradient_b"]


@triton.jit
def _at(start, first_a, stride_a, first_b, stride_b):
    """The address from which a tile's offsets need 32 bits: with 64, addresses alone would fill the registers."""
    return start + tl.cast(first_a, tl.int64) * stride_a + tl.cast(first_b, tl.int64) * stride_b


@triton.autotune(BACKWARD, key=["D", "OWN", "OTHER"], **REMEMBERED)
@triton.jit(do_not_specialize=["A", "N", "B", "M", "part"], do_not_specialize_on_alignment=_STRIDES)
def gradient_kernel(
        weights, others, other_weights, own_index, own_gradient, other_index, other_gradient, out,
        A, N, B, M, part, others_b, others_m, own_index_a, own_index_n, own_index_b, own_gradient_a, own_gradient_b,
        other_index_a, other_index_b, other_index_m, other_gradient_a, other_gradient_b,
        D: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, PRECISION: tl.constexpr, SETS: tl.constexpr,
        ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """`out` [parts, A, N, D]: the gradient of tokens [A, N, D], each part from `part` token sets of the other side.

    A token gets the other side's token that it chose (`own_index` [A, N, B]) and those that chose it (`other_index`
    [A, B, M]). That is a product of coefficients, which are made here tile by tile, and the other side's tokens.
    """
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside_R = row_R < A * N
    first_set = tl.program_id(0) * ROWS // N
    set_R, token_R = row_R // N - first_set, row_R % N
    depth_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    start = tl.program_id(2) * part
    end = tl.minimum(start + part, B)
    weight_R = tl.load(weights + row_R, mask=inside_R, other=0)
    sum_RD = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for first in range(start, end, SETS):
        set_B = tl.arange(0, SETS)
        inside_B = first + set_B < end
        inside_RB = inside_R[:, None] & inside_B[None, :]
        if OWN:
            place_RB = (set_R * own_index_a + token_R * own_index_n)[:, None] + (set_B * own_index_b)[None, :]
            chosen_RB = tl.load(_at(own_index, first_set, own_index_a, first, own_index_b) + place_RB, mask=inside_RB,
                                other=0)
            place_RB = (set_R * own_gradient_a)[:, None] + (set_B * own_gradient_b)[None, :]
            own_RB = weight_R[:, None] * tl.load(
                _at(own_gradient, first_set, own_gradient_a, first, own_gradient_b) + place_RB, mask=inside_RB, other=0)
        if OTHER:
            place_RB = (set_R * other_gradient_a)[:, None] + (set_B * other_gradient_b)[None, :]
            other_RB = tl.load(_at(other_gradient, first_set, other_gradient_a, first, other_gradient_b) + place_RB,
                               mask=inside_RB, other=0)
            choices = _at(other_index, first_set, other_index_a, first, other_index_b)
            choice_RB = (set_R * other_index_a)[:, None] + (set_B * other_index_b)[None, :]
        tokens = _at(others, first, others_b, 0, 0)
        for token in range(0, M):
            other_weight_B = tl.load(other_weights + (first + set_B) * M + token, mask=inside_B, other=0)
            others_BD = tl.load(tokens + token * others_m + (set_B * others_b)[:, None] + depth_D[None, :],
                                mask=(other_weight_B > 0)[:, None] & (depth_D < D)[None, :], other=0)
            coefficients_RB = tl.zeros([ROWS, SETS], tl.float32)
            if OWN:
                coefficients_RB += tl.where(chosen_RB == token, own_RB, 0.0)
            if OTHER:
                found_RB = tl.load(choices + token * other_index_m + choice_RB, mask=inside_RB, other=0)
                coefficients_RB += tl.where(found_RB == token_R[:, None], other_RB * other_weight_B[None, :], 0.0)
            sum_RD = _product(coefficients_RB.to(others.dtype.element_ty), others_BD, sum_RD, PRECISION)
    place_RD = (tl.program_id(2).to(tl.int64) * A * N + row_R)[:, None] * D + depth_D[None, :]
    tl.store(out + place_RD, sum_RD, mask=inside_R[:, None] & (depth_D < D)[None, :])
