"""The Triton kernel of `fused`: token scores stay on the chip. Only `fused` imports this module, and only with Triton.

The kernel is a matrix product with work after it. What it knows about cost (decision 18):

- Reshaping a tile needs sizes that are powers of two. 12 frames as 16 would waste a quarter of all products, so a tile
  takes `FRAMES_CHUNK` = 4 frames of many videos and is computed 3 times, with a running maximum. Words likewise.
- Columns are frame-major in a tile, so each thread has all frames of its videos and compares them without its
  neighbours. Rows are text-major: the words of a text stay within one or two warps.
- Every sum has one fixed order and there are no atomic additions, so the kernel repeats its results bit by bit.
"""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")   # Triton runs kernels on the CPU, for tests


def tile_for(words_chunk: int, frames_chunk: int, item_size: int, keep: bool) -> dict[str, int]:
    """Numbers of rows and columns of a tile and of depth at a time, and the launch options: the fastest on an H200.

    They hold a chunk of either side. No tuning at run time: the first sizes that come, which decide, are small, and
    their best tile has half the speed for a large gallery.
    """
    if INTERPRETED.value:
        rows, columns, depth, warps, stages = 32, 16, 16, 4, 1
    elif item_size > 2:
        rows, columns, depth, warps, stages = 128, 128, 32, 8, 3
    elif keep:
        rows, columns, depth, warps, stages = 128, 128, 32, 4, 4
    else:
        rows, columns, depth, warps, stages = 128, 256, 64, 8, 3
    return {"ROWS": max(rows, words_chunk), "COLUMNS": max(columns, frames_chunk), "BLOCK_D": depth,
            "num_warps": warps, "num_stages": stages}


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
