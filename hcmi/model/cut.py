"""What a model does not read: the end of a text that has more tokens than `num_words`."""

import random
from bisect import bisect_right
from collections.abc import Sequence

from hcmi.config import ModelConfig
from hcmi.errors import ModelError
from hcmi.model.checkpoint_files import checkpoint_folder
from hcmi.model.processor import HcmiProcessor

SAMPLE = 20_000         # captions that are looked at
SEED = 0
LONGEST_WORD = 30       # characters; what is longer is text without spaces, such as Chinese, and is cut inside [ours]


def unread(text: str, processor: HcmiProcessor) -> str:
    """The end of `text` that is not read, from the start of a word; empty where all is read."""
    words = text.split()

    def fitting(parts: Sequence[str], before: Sequence[str]) -> int:
        """How many of `parts`, joined behind `before`, are read. What begins a word may have more tokens than it."""
        return bisect_right(range(1, len(parts) + 1), processor.num_words, key=lambda count: len(processor.tokens(
            " ".join([*before, "".join(parts[:count])]), special=True)))

    read = fitting([f"{word} " for word in words], [])
    if read == len(words):
        return ""
    first = words[read]
    start = fitting(first, words[:read]) if len(first) > LONGEST_WORD else 0
    return " ".join([first[start:], *words[read + 1:]])


def share_cut(captions: Sequence[str], config: ModelConfig) -> float | None:
    """The share of captions, or of 20,000 of them, that a model of this configuration does not read to the end.

    None when the backbone's tokenizer cannot be loaded. That of towers from scratch is learned from these captions.
    """
    some = random.Random(SEED).sample(captions, SAMPLE) if len(captions) > SAMPLE else list(captions)
    try:
        processor = (HcmiProcessor.from_captions(some, config.scratch.vocab_size, config.num_words, 224)
                     if config.backbone == "scratch" else
                     HcmiProcessor.from_backbone(checkpoint_folder(config.backbone, weights=False),
                                                 config.num_words, 224))
    except ModelError:
        return None
    cut = sum(len(processor.tokens(caption, special=True)) > config.num_words for caption in some)
    return cut / max(len(some), 1)


def cut_note(captions: Sequence[str], config: ModelConfig) -> str | None:
    """The note about captions that are not read to the end; None where all are, or it is not known."""
    share = share_cut(captions, config) if captions else None
    if not share:
        return None
    return (f"{max(share, 0.001):.1%} of the captions are longer than the {config.num_words} tokens that the model "
            f"reads (model.num_words); their ends are left out. docs/own-videos.md says how to read longer ones.")
