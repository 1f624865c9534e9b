"""Which languages a tokenizer can read.

A letter that it has to spell in bytes, or does not know, tells the model little.
"""

import warnings
from collections.abc import Sequence
from typing import Any

SPACE = "▁"         # which many tokenizers put before a word, at the place of its first letter
MOST = 0.5          # share of a text's letters that may be spelt [ours]
LOOKED_AT = 200     # captions of a data set
SCRIPTS = {"Latin": "the quick brown fox", "Greek": "καλημέρα κόσμε", "Cyrillic": "собака прыгает в воду",
           "Arabic": "كلب يقفز في الماء", "Hebrew": "כלב קופץ למים", "Devanagari": "कुत्ता पानी में कूदता है",
           "Thai": "สุนัขกระโดดลงน้ำ", "Chinese": "一只狗跳进水里",
           "Japanese": "いぬがみずにとびこむ", "Korean": "개가 물에 뛰어든다"}


def spelt_share(tokenizer: Any, text: str) -> float:
    """Share of the letters in `text` that take several tokens each, which are bytes, or an unknown one; 0 without any.

    A letter in a token of several letters is known. So a tokenizer of many languages reads them all, and one of
    English reads what a language shares with it.
    """
    letters = [at for at, char in enumerate(text) if char.isalpha()]
    if not letters:
        return 0.0
    unknown = getattr(tokenizer, "unk_token_id", None)
    if not getattr(tokenizer, "is_fast", False):        # it does not say which token is which letter
        spelt = {char for char in {text[at] for at in letters} if unknown in tokenizer(char)["input_ids"]}
        return sum(text[at] in spelt for at in letters) / len(letters)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens_of, space = dict.fromkeys(letters, 0), tokenizer.convert_tokens_to_ids(SPACE)
    for number, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        for at in range(start, end):
            if at in tokens_of and number == unknown:
                tokens_of[at] = 2
            elif at in tokens_of and end - start == 1 and number != space:
                tokens_of[at] += 1
    return sum(count > 1 for count in tokens_of.values()) / len(letters)


def is_foreign(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer has to spell most of the text."""
    return spelt_share(tokenizer, text) > MOST


def readable_scripts(tokenizer: Any) -> list[str]:
    """The scripts of SCRIPTS that it reads. It may have been trained on few texts of one."""
    return [script for script, text in SCRIPTS.items() if not is_foreign(tokenizer, text)]


def warn_of_foreign(tokenizer: Any, captions: Sequence[str], backbone: str) -> None:
    """Warn when most captions are in a language that the tokenizer of a pretrained backbone has to spell."""
    some = captions[::max(len(captions) // LOOKED_AT, 1)]
    foreign = [caption for caption in some if is_foreign(tokenizer, caption)]
    if 2 * len(foreign) > len(some):
        warnings.warn(f"captions: {len(foreign)} of {len(some)} looked at are in a language whose letters the "
                      f"tokenizer of {backbone} does not read, such as {foreign[0][:40]!r}. Choose a backbone of many "
                      f"languages, such as MetaCLIP 2 or SigLIP 2.", stacklevel=2)
