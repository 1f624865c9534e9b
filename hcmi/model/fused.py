"""Weighted token interaction on a GPU, forward and backward, without the token scores [Q, W, V, T] in memory.

The processor has the formulas of `interaction`. On CUDA with Triton (which comes with CUDA builds of torch), kernels
that keep token scores on the chip give the same numbers (decision 18).
"""

import warnings
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_WORDS = 128         # tokens of one side that a tile holds when both sides' maxima are taken at once
WORKSPACE = 2**28       # bytes of coefficients that a backward pass makes at a time
TYPES = (torch.float32, torch.float16, torch.bfloat16)


def has_kernels_for(texts_QWD: Tensor, videos_VTD: Tensor) -> bool:
    """Whether the kernels can take these tokens: CUDA (Ampere or later) with Triton, and no float64."""
    return (texts_QWD.is_cuda and videos_VTD.is_cuda and texts_QWD.dtype in TYPES and videos_VTD.dtype in TYPES
            and _card_can(texts_QWD.get_device()))


@cache
def _card_can(device: int) -> bool:
    """Whether a small case comes out right on the card. If not, a warning says so, once."""
    if find_spec("triton") is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        _try_small_case(torch.device("cuda", device))
    except Exception as error:  # noqa: BLE001 compilers, drivers and cards fail in many ways
        found = " ".join(str(error).split())[:200]
        warnings.warn(f"similarity kernels on cuda:{device}: need the result of the plain formula, got: {found}. "
                      f"The plain formula is used, which is slower.", stacklevel=2)
        return False
    return True


@torch.enable_grad()
def _try_small_case(device: torch.device) -> None:
    """Compare both sides and their gradients with the plain formula. Raises: AssertionError when they differ."""
    generator = torch.Generator().manual_seed(0)
    tokens = [F.normalize(torch.randn(5, count, 64, generator=generator), dim=-1) for count in (9, 12)]
    weights = [torch.rand(5, count, generator=generator).softmax(1) for count in (9, 12)]
    leaves = [tensor.to(device).requires_grad_() for tensor in (tokens[0], weights[0], tokens[1], weights[1])]
    sims_QWVT = torch.einsum("qwd,vtd->qwvt", leaves[0], leaves[2])
    plain = (torch.einsum("qwv,qw->qv", sims_QWVT.amax(3), leaves[1]),
             torch.einsum("qvt,vt->qv", sims_QWVT.amax(1), leaves[3]))
    fused = fused_token_interaction(*leaves)
    for name, pair in {"scores": (fused, plain), "gradients": tuple(
            torch.autograd.grad((one.sin() + other.square()).sum(), leaves) for one, other in (fused, plain))}.items():
        for one, other in zip(*pair, strict=True):
            worst = float((one - other).detach().abs().max())
            assert worst < 1e-2, f"{name} off by {worst}"


@torch.compiler.disable
def fused_token_interaction(texts_QWD: Tensor, text_weights_QW: Tensor, videos_VTD: Tensor, video_weights_VT: Tensor,
                            ) -> tuple[Tensor, Tensor]:
    """sum_w u_w max_t cos(w, t) and sum_t v_t max_w cos(w, t): the words' and the frames' side, float32 [Q, V] each.

    Weights of 0 mark padding, which takes part in no maximum and gets no gradient, nor does its weight. A word in a
    video of nothing but padding scores -1, and so does a frame with a text of nothing but padding. A side whose own
    tokens are all padding scores 0.
    Products are made in the tokens' type (under autocast in its type), float32 as three TF32 products unless
    `torch.set_float32_matmul_precision` allows one. Sums are float32. Of equal scores the first gets the gradient.
    Needs what `has_kernels_for` asks for.
    """
    num_words, num_frames = max(texts_QWD.shape[1], 1), max(videos_VTD.shape[1], 1)
    if min(num_words, num_frames) > MAX_WORDS:      # no tile holds all tokens of a set: once for each side
        return (fused_max_sim(texts_QWD, text_weights_QW, videos_VTD, video_weights_VT),
                fused_max_sim(videos_VTD, video_weights_VT, texts_QWD, text_weights_QW).T)
    if _cost(num_words, num_frames) <= _cost(num_frames, num_words):
        return _interact(texts_QWD, text_weights_QW, videos_VTD, video_weights_VT, both=True)
    frames_VQ, words_VQ = _interact(videos_VTD, video_weights_VT, texts_QWD, text_weights_QW, both=True)
    return words_VQ.T, frames_VQ.T


@torch.compiler.disable
def fused_max_sim(texts_QWD: Tensor, text_weights_QW: Tensor, videos_VTD: Tensor, video_weights_VT: Tensor) -> Tensor:
    """The words' side of `fused_token_interaction` alone, float32 [Q, V]. Of `video_weights_VT` only `> 0` counts."""
    return _interact(texts_QWD, text_weights_QW, videos_VTD, video_weights_VT, both=False)[0]


def _cost(rows: int, columns: int) -> float:
    """Products that a set pair takes when the sets of `rows` tokens are whole in a tile."""
    return _power_of_2(rows) * _padded(columns, _chunk(columns)) if rows <= MAX_WORDS else float("inf")


def _chunk(tokens: int) -> int:
    """4, or a smaller power of two that pads `tokens` less. Few sizes, because kernels are compiled for each."""
    return min((4, 2, 1) if tokens < 2 else (4, 2), key=lambda size: _padded(tokens, size))


def _padded(tokens: int, chunk: int) -> int:
    return -(-tokens // chunk) * chunk


def _power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _interact(texts_QWD: Tensor, text_weights_QW: Tensor, videos_VTD: Tensor, video_weights_VT: Tensor, both: bool,
              ) -> tuple[Tensor, Tensor]:
    """Either side may be the videos."""
    texts_QWD, text_weights_QW = _at_least_one(texts_QWD, text_weights_QW)
    videos_VTD, video_weights_VT = _at_least_one(videos_VTD, video_weights_VT)
    device = texts_QWD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else texts_QWD.dtype
    sides = (texts_QWD, text_weights_QW, videos_VTD, video_weights_VT)
    keep = torch.is_grad_enabled() and any(side.requires_grad for side in sides)
    return _Interaction.apply(*sides, both, keep, dtype)


def _at_least_one(tokens_BND: Tensor, weights_BN: Tensor) -> tuple[Tensor, Tensor]:
    """The same, with one token of padding where there is none."""
    if tokens_BND.shape[1]:
        return tokens_BND, weights_BN
    return F.pad(tokens_BND, (0, 0, 0, 1)), F.pad(weights_BN, (0, 1))


class _Interaction(torch.autograd.Function):
    """Keeps the place of each maximum, one byte, and its value in the tokens' type, where a gradient needs them.

    A byte costs a thirtieth of the time that the token scores behind it take to compute again, and the backward pass
    then follows the forward pass's own choice even where rounding would decide.
    """

    @staticmethod
    def forward(ctx, texts_QWD, text_weights_QW, videos_VTD, video_weights_VT, both, keep, dtype):
        sides = (_rows(texts_QWD.to(dtype)), text_weights_QW.float().contiguous(),
                 _rows(videos_VTD.to(dtype)), video_weights_VT.float().contiguous())
        words_QV, frames_QV, kept = _forward(*sides, both, keep)
        ctx.save_for_backward(*sides, *kept)
        return words_QV, frames_QV

    @staticmethod
    @once_differentiable
    def backward(ctx, words_gradient_QV, frames_gradient_QV):
        texts_QWD, text_weights_QW, videos_VTD, video_weights_VT, words, word_best, *of_frames = ctx.saved_tensors
        frames, frame_best = of_frames or (None, None)
        scale, to_words_QV, to_frames_QV = _scaled(words_gradient_QV, frames_gradient_QV, texts_QWD.dtype)
        to_texts, to_videos = _token_gradients(texts_QWD, text_weights_QW, videos_VTD, video_weights_VT, words,
                                               to_words_QV, frames, to_frames_QV, ctx.needs_input_grad[0],
                                               ctx.needs_input_grad[2])
        to_text_weights = to_video_weights = None
        if ctx.needs_input_grad[1]:
            to_text_weights = _weight_gradient(text_weights_QW, word_best, to_words_QV)
        if ctx.needs_input_grad[3] and frame_best is not None and to_frames_QV is not None:
            to_video_weights = _weight_gradient(video_weights_VT, frame_best.permute(1, 2, 0), to_frames_QV.T)
        return *(gradient if gradient is None or scale is None else gradient * scale
                 for gradient in (to_texts, to_text_weights, to_videos, to_video_weights)), None, None, None


def _rows(tokens_BND: Tensor) -> Tensor:
    """With each token's numbers side by side; tokens and token sets may lie anywhere."""
    return tokens_BND if tokens_BND.stride(2) == 1 else tokens_BND.contiguous()


def _forward(texts_QWD: Tensor, text_weights_QW: Tensor, videos_VTD: Tensor, video_weights_VT: Tensor, both: bool,
             keep: bool) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
    """The words' side, the frames' side if `both`, and if `keep` place and value of the maxima of these sides."""
    from hcmi.model.kernels import interaction_kernel, tile_for

    (num_texts, num_words, dim), (num_videos, num_frames, _) = texts_QWD.shape, videos_VTD.shape
    words_QV = text_weights_QW.new_empty(num_texts, num_videos)
    frames_QV = torch.empty_like(words_QV) if both else None
    longest = max(num_words, num_frames)
    places, nothing = (torch.uint8, 255) if longest <= 255 else (torch.int16, 2**15 - 1)
    assert longest <= nothing, f"need at most {nothing} tokens, got {longest}"
    shapes = ((num_texts, num_words, num_videos), (num_texts, num_videos, num_frames)) if keep else ()
    kept = tuple(texts_QWD.new_empty(shape, dtype=dtype) for shape in shapes[:1 + both]
                 for dtype in (places, texts_QWD.dtype))
    if words_QV.numel() == 0:
        return words_QV, frames_QV, kept
    words_chunk, frames_chunk = _power_of_2(num_words if both else min(num_words, 32)), _chunk(num_frames)
    tile = tile_for(words_chunk, frames_chunk, texts_QWD.element_size(), keep)
    num_words_Q, num_frames_V = _lengths(text_weights_QW), _lengths(video_weights_VT)
    order_Q = num_words_Q.argsort(stable=True).int()        # texts of about equal length share a tile: less padding

    grid = -(-num_texts // (tile["ROWS"] // words_chunk)) * -(-num_videos // (tile["COLUMNS"] // frames_chunk))
    unused = (words_QV,) * (4 - len(kept))
    with torch.cuda.device_of(words_QV):
        interaction_kernel[grid,](
            texts_QWD, text_weights_QW, videos_VTD, video_weights_VT, order_Q, num_words_Q, num_frames_V,
            words_QV, words_QV if frames_QV is None else frames_QV, *kept, *unused,
            num_texts, num_words, num_videos, num_frames, *texts_QWD.stride()[:2], *videos_VTD.stride()[:2], D=dim,
            WORDS_CHUNK=words_chunk, FRAMES_CHUNK=frames_chunk, BOTH=both, KEEP=keep, NOTHING=nothing,
            PRECISION=_precision(), **tile)
    return words_QV, frames_QV, kept


def _lengths(weights_BN: Tensor) -> Tensor:
    """Tokens up to the last that is not padding."""
    places_N = torch.arange(1, weights_BN.shape[1] + 1, dtype=torch.int32, device=weights_BN.device)
    return ((weights_BN > 0) * places_N).amax(1)


def _precision() -> str:
    """How float32 is multiplied on tensor cores."""
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _scaled(words_QV: Tensor, frames_QV: Tensor | None, dtype: torch.dtype,
            ) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Gradients as the kernels take them. float16 has no room for small ones: those are divided by a power of two."""
    sides = [side.float().contiguous() for side in (words_QV, frames_QV) if side is not None]
    scale = None
    if dtype == torch.float16 and words_QV.numel():
        scale = torch.exp2(torch.frexp(torch.stack([side.abs().amax() for side in sides]).amax()).exponent.float())
        sides = [side / scale for side in sides]
    return scale, sides[0], sides[1] if frames_QV is not None else None


def _weight_gradient(weights_BN: Tensor, best_BNM: Tensor, gradient_BM: Tensor) -> Tensor:
    """Sum of the maxima of each token, weighted by the gradient of the scores; 0 for padding."""
    sums_BN = torch.bmm(best_BNM, gradient_BM.to(best_BNM.dtype)[..., None])[..., 0].float()
    return sums_BN.masked_fill(weights_BN <= 0, 0)


def _token_gradients(texts_QWD: Tensor, text_weights_QW: Tensor, videos_VTD: Tensor, video_weights_VT: Tensor,
                     words_QWV: Tensor, to_words_QV: Tensor, frames_QVT: Tensor | None, to_frames_QV: Tensor | None,
                     for_texts: bool, for_videos: bool) -> tuple[Tensor | None, Tensor | None]:
    """Float32 gradients of both sides' tokens, None where it is not asked for.

    `words_QWV`: the frame that each word chose; `frames_QVT`: the word that each frame chose. A token's gradient is the
    sum of the tokens that it chose or that chose it, each times a coefficient. Most coefficients are 0, and still two
    dense matrix products need far less time than a kernel that made them on the chip (decision 18). The matrix is made
    for as many texts at a time as `WORKSPACE` holds.
    """
    (num_texts, num_words, dim), (num_videos, num_frames, _) = texts_QWD.shape, videos_VTD.shape
    to_texts = text_weights_QW.new_zeros(texts_QWD.shape) if for_texts else None
    to_videos = text_weights_QW.new_zeros(num_videos * num_frames, dim) if for_videos else None
    row = num_words * num_videos * num_frames
    if 0 in (num_texts, row, dim):
        return to_texts, None if to_videos is None else to_videos.view(videos_VTD.shape)
    # padding may hold anything, and 0 times NaN is NaN
    videos_CD = videos_VTD.masked_fill(video_weights_VT[..., None] <= 0, 0).reshape(-1, dim)
    block = max(WORKSPACE // (row * videos_CD.element_size()), 1)
    for part in (slice(first, first + block) for first in range(0, num_texts, block)):
        texts_QWD_part = texts_QWD[part].masked_fill(text_weights_QW[part, :, None] <= 0, 0)
        coefficients = videos_CD.new_zeros(len(texts_QWD_part), num_words, num_videos, num_frames)
        choices, values = _chosen(words_QWV[part], text_weights_QW[part, :, None] * to_words_QV[part, None], num_frames)
        coefficients.scatter_(3, choices[..., None], values.to(videos_CD.dtype)[..., None])
        if frames_QVT is not None and to_frames_QV is not None:
            choices, values = _chosen(frames_QVT[part], video_weights_VT * to_frames_QV[part, :, None], num_words)
            coefficients.scatter_add_(1, choices[:, None], values.to(videos_CD.dtype)[:, None])
        coefficients_RC = coefficients.view(-1, len(videos_CD))
        if to_texts is not None:
            to_texts[part] = (coefficients_RC @ videos_CD).view(-1, num_words, dim)
        if to_videos is not None:
            to_videos += coefficients_RC.T @ texts_QWD_part.reshape(-1, dim)
    return to_texts, None if to_videos is None else to_videos.view(videos_VTD.shape)


def _chosen(places: Tensor, values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Places as `scatter_` takes them; where nothing was chosen, any place and the value 0.

    The kernel does not write the places of padding, whose values are 0.
    """
    return places.clamp(0, count - 1).long(), values.masked_fill(places >= count, 0)
