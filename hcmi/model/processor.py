"""From strings and pixels to the model's inputs. It is saved beside the model, in the Hugging Face convention."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hcmi.errors import ModelError
from hcmi.model.checkpoint_files import reading
from hcmi.model.geometry import CLIP_SQUARE, Square, image_processor, own_geometry
from hcmi.model.open_clip_towers import clean_function

START, END = "<|startoftext|>", "<|endoftext|>"
# Scratch towers read a text as words, numbers and single other characters. Each gets a space before it, which is
# removed again from punctuation: the comma after a word is the character alone. So a word has the same tokens whatever
# is around it. When the text's own space was part of the word, "red" in quotes was a different, unknown word.
SPACES = r"[\s\u200b]+"         # of any kind; the zero-width space ends a word too
INVISIBLE = r"[\p{Cf}&&[^\u200b]]"       # soft hyphens, joiners, byte order marks, which may be inside a word
PIECES = r"\p{L}[\p{L}\p{M}]*|\p{N}+|[^\p{L}\p{N}]"
PUNCTUATION_SPACE = r"^Ġ(?=[!-/:-@\[-`{-~])"       # Ġ is how a byte-level tokenizer writes a space


class HcmiProcessor:
    """Tokenizer, normalisation and the sizes they were trained with. Several threads may use one processor at once.

    Frames must have the model's size; `hcmi.video` makes them so, as `square` says. Here they are only normalised.
    `untrained`: ids of tokens that no training caption has. A pretrained tokenizer has none. `clean`: the rule by which
    texts are cleaned first (`clean_function`). `pad_id`: of padding, where it is not the tokenizer's own.

    A tokenizer keeps the padding and truncation settings of its last call, so a call with other settings would change
    them for a call that is running in another thread. Every call here asks for none. Rows are cut and padded after it.
    """

    def __init__(self, tokenizer, image_processor, num_words: int, image_size: int, untrained: Iterable[int] = (),
                 square: Square = CLIP_SQUARE, clean: str = "", pad_id: int | None = None):
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.num_words = num_words
        self.image_size = image_size
        self.square = square
        self.clean_rule, self.clean = clean, clean_function(clean)
        pad_id = tokenizer.pad_token_id if pad_id is None else pad_id
        if pad_id is None:
            raise ValueError("the tokenizer has no pad_token.")
        self.pad_id = int(pad_id)
        self.untrained = torch.tensor(sorted(untrained), dtype=torch.long)
        bare, whole = (self.tokens("a", special) for special in (False, True))
        self._num_ends = whole[::-1].index(bare[-1])        # special tokens after a text
        self._mean_std: dict[torch.device, tuple[Tensor, Tensor]] = {}      # [C, 1, 1] each, where frames have been

    @classmethod
    def from_captions(cls, captions: list[str], vocab_size: int, num_words: int, image_size: int) -> "HcmiProcessor":
        """A byte-level BPE learned from captions. It can encode any string, and frequent words are one token."""
        bpe = Tokenizer(models.BPE(end_of_word_suffix=""))
        bpe.normalizer = normalizers.Sequence([normalizers.Replace(Regex(INVISIBLE), ""), normalizers.NFC(),
                                               normalizers.Lowercase()])
        bpe.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(SPACES), "removed"), pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
            pre_tokenizers.Split(Regex(PUNCTUATION_SPACE), "removed")])
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        bpe.train_from_iterator(captions, trainers.BpeTrainer(
            vocab_size=max(vocab_size, len(alphabet) + 2), special_tokens=[START, END], initial_alphabet=alphabet,
            show_progress=False))
        ids = {token: bpe.token_to_id(token) for token in (START, END)}
        bpe.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=list(ids.items()))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=START, eos_token=END, pad_token=END,
                                            model_max_length=num_words)
        images = CLIPImageProcessorPil(size={"shortest_edge": image_size},
                                       crop_size={"height": image_size, "width": image_size},
                                       image_mean=[0.5] * 3, image_std=[0.25] * 3)
        seen = {number for encoded in bpe.encode_batch(captions) for number in encoded.ids}
        return cls(tokenizer, images, num_words, image_size, set(range(len(tokenizer))) - seen)

    @classmethod
    def from_backbone(cls, folder: str | Path, num_words: int, image_size: int, own_square: bool = False,
                      name: str = "model.backbone", lower_case: bool = False, clean: str = "") -> "HcmiProcessor":
        """The pretrained checkpoint's own tokenizer and normalisation, by `transformers`.

        `own_square`: frames become square as the checkpoint does it; otherwise as CLIP does. `lower_case`: the
        checkpoint was trained on small letters. Not every tokenizer makes them itself (SigLIP 1's does, SigLIP 2's
        mostly does not). `clean`: another rule (`clean_function`). `name`: what messages call the checkpoint.
        """
        with reading(name, "its tokenizer and preprocessor files",
                     "Copy all files of the checkpoint into its folder, or download it again."):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            images = image_processor(folder)
            square = own_geometry(name, images)[0] if own_square else CLIP_SQUARE
            lower = lower_case and tokenizer("A")["input_ids"] != tokenizer("a")["input_ids"]
            return cls(tokenizer, images, num_words, image_size, square=square, clean="lower" if lower else clean)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "HcmiProcessor":
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        images = image_processor(folder)
        saved = tokenizer.init_kwargs
        how, resample = saved.get("square", CLIP_SQUARE)
        return cls(tokenizer, images, int(saved["num_words"]), int(saved["image_size"]), saved.get("untrained", ()),
                   (how, resample), saved.get("clean", ""), saved.get("pad_id"))

    def save_pretrained(self, folder: str | Path) -> None:
        self.tokenizer.init_kwargs.update(num_words=self.num_words, image_size=self.image_size,
                                          untrained=self.untrained.tolist(), square=list(self.square),
                                          **self._text_rules())
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def describe(self) -> dict:
        """The preprocessing, as an index records it; `square` and rules for texts only where they are not CLIP's."""
        return {"image_size": self.image_size, "num_words": self.num_words,
                "image_mean": list(self.image_processor.image_mean), "image_std": list(self.image_processor.image_std),
                **({} if self.square == CLIP_SQUARE else {"square": list(self.square)}), **self._text_rules()}

    def _text_rules(self) -> dict:
        """What is done to texts beside the tokenizer; empty for most."""
        return {**({"clean": self.clean_rule} if self.clean_rule else {}),
                **({} if self.pad_id == self.tokenizer.pad_token_id else {"pad_id": self.pad_id})}

    def frames(self, frames: np.ndarray | Tensor) -> Tensor:
        """uint8 [..., H, X, C] in 0..255 -> float32 [..., C, H, X], normalised, on the input's device.

        The operations and their order are those of `transformers`, so that the results are equal to the last bit.

        Raises: ModelError when the frames do not have the model's image size.
        """
        frames = torch.as_tensor(frames)
        if frames.shape[-3:-1] != (self.image_size, self.image_size):
            raise ModelError(f"frames: need {self.image_size} x {self.image_size} pixels, as the model was made for, "
                             f"got {frames.shape[-2]} x {frames.shape[-3]}. Set shards.size to the model's image size.")
        pixels = frames.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format)
        if pixels.device not in self._mean_std:         # a copy for each batch would wait for the GPU
            images = self.image_processor
            self._mean_std[pixels.device] = (_per_channel(images.image_mean, pixels.device),
                                             _per_channel(images.image_std, pixels.device))
        mean_C11, std_C11 = self._mean_std[pixels.device]
        return pixels.div_(255).sub_(mean_C11).div_(std_C11)

    def texts(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, [B, W], where W is the length of the batch's longest caption, at most `num_words`.

        Longer captions are cut but keep their end token. Words that training has not seen are left out.
        """
        ids_BW, mask_BW = self._encode(texts)
        if bool(torch.isin(ids_BW, self.untrained).any()):
            ids_BW, mask_BW = self._encode([self.known(text)[0] for text in texts])
        if mask_BW is None:
            mask_BW = _mask_after_first_end(ids_BW, self.tokenizer.eos_token_id)
        return ids_BW, mask_BW

    def tokens(self, text: str, special: bool = False) -> list[int]:
        """Token ids of the whole text; `special` adds the start and end tokens."""
        return self.tokenizer(self.clean(text), add_special_tokens=special, verbose=False)["input_ids"]

    def known(self, text: str) -> tuple[str, list[str]]:
        """The cleaned text without the words that have a token which no training caption has, and these words.

        The text is empty if no token is left.

        The vector of such a token is the random one it started with, and disturbs the whole sentence: on Scenes,
        wordings that training has not seen found their clip in 39 of 100 cases with these words and in 73 without.
        [ours]
        """
        left_out: list[str] = []
        text = self.clean(text)
        while True:         # the rest may form a word that was not there before
            encoded = self.tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)
            at_W = torch.isin(encoded["input_ids"][0], self.untrained).nonzero()[:, 0].tolist()
            if not at_W:
                return text if encoded["input_ids"].shape[1] else "", left_out
            spans = [encoded.word_to_chars(0, word) for word in sorted({encoded.word_ids(0)[at] for at in at_W})]
            left_out += filter(None, (text[start:end].strip() for start, end in spans))
            for start, end in reversed(spans):
                text = text[:start] + " " + text[end:]
            text = " ".join(text.split())

    def _encode(self, texts: list[str]) -> tuple[Tensor, Tensor | None]:
        """Ids, cut to `num_words` and padded as the tokenizer itself would do it, and its mask if it gives one."""
        encoded = self.tokenizer([self.clean(text) for text in texts], verbose=False)
        rows = [ids if len(ids) <= self.num_words
                else ids[:self.num_words - self._num_ends] + ids[len(ids) - self._num_ends:]
                for ids in encoded["input_ids"]]
        ids_BW = pad_sequence([torch.tensor(ids, dtype=torch.long) for ids in rows], batch_first=True,
                              padding_value=self.pad_id)
        if "attention_mask" not in encoded:
            return ids_BW, None
        lengths_B = torch.tensor([len(ids) for ids in rows])
        return ids_BW, (torch.arange(ids_BW.shape[1]) < lengths_B[:, None]).long()


def _per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def _mask_after_first_end(ids_BW: Tensor, end_id: int) -> Tensor:
    """Mask of the tokens up to the first end token, for SigLIP's tokenizer, which gives no mask."""
    ended_BW = (ids_BW == end_id).long().cumsum(1)
    return ((ended_BW == 0) | ((ended_BW == 1) & (ids_BW == end_id))).long()

