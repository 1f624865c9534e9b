"""Strings and pixels against `transformers`' own, on CLIP's real vocabulary and real photographs."""

import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from model_world import clip_tokenizer, save_small_clip, save_small_siglip
from PIL import Image
from tokenizers import normalizers, pre_tokenizers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hcmi.errors import ModelError
from hcmi.model.processor import HcmiProcessor
from hcmi.search.explain import query_words
from hcmi.video.crop import centre_crop

TEXTS = ["a dog jumps into water", "A DOG, jumping; into WATER!!", "it's two o'clock & we'll wait, they'd said",
         "l'été à Zürich: 7 naïve façades", "日本語の字幕 и русский текст", "emoji 🎬🐕 and\ttabs\nand   spaces", "",
         "   ", "3.14159 x 2 = 6.28318", "don't <|endoftext|> stop", "ﬁ ligature, e\u0301 combining", "a " * 200,
         "pneumonoultramicroscopicsilicovolcanoconiosis"]


@pytest.fixture(scope="session")
def clip_data(shared_data):
    return shared_data / "clip"


@pytest.fixture(scope="module")
def real(clip_data, tmp_path_factory):
    """CLIP's tokenizer and preprocessing at its own size, read back from a checkpoint folder."""
    folder = save_small_clip(tmp_path_factory.mktemp("clip"), vocabulary=clip_data, image_size=224)
    return HcmiProcessor.from_backbone(str(folder), num_words=32, image_size=224)


@pytest.fixture(scope="module")
def scratch():
    return HcmiProcessor.from_captions(["a red ring slides left", "then a blue ring grows"] * 3, 400, 12, 16)


# texts

@pytest.mark.parametrize("num_words", [32, 77])
def test_texts_are_clips_own_ids_when_its_vocabulary_is_loaded(real, clip_data, num_words):
    real.num_words = num_words
    own = clip_tokenizer(clip_data)(TEXTS, padding=True, truncation=True, max_length=num_words, return_tensors="pt")
    ids_BW, mask_BW = real.texts(TEXTS)
    assert torch.equal(ids_BW, own["input_ids"])
    assert torch.equal(mask_BW, own["attention_mask"])


def test_texts_are_the_ids_openai_published_when_the_caption_is_known(real):
    """`clip.tokenize("a diagram")` and "a photo of a cat" of github.com/openai/CLIP."""
    real.num_words = 32
    ids_BW, mask_BW = real.texts(["a diagram", "a photo of a cat"])
    assert ids_BW[0, :4].tolist() == [49406, 320, 22697, 49407]
    assert ids_BW[1].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert mask_BW.tolist() == [[1, 1, 1, 1, 0, 0, 0], [1] * 7]


def test_texts_keep_both_ends_when_they_are_cut(real):
    real.num_words = 8
    ids_BW, mask_BW = real.texts(["one two three four five six seven eight nine ten"])
    assert ids_BW.shape == (1, 8)
    assert (ids_BW[0, 0], ids_BW[0, -1]) == (49406, 49407)
    assert mask_BW.all()


def test_texts_mask_up_to_the_first_end_when_the_tokenizer_gives_no_mask(tmp_path):
    processor = HcmiProcessor.from_backbone(str(save_small_siglip(tmp_path)), 12, 32)
    ids_BW, mask_BW = processor.texts(["abc", "abcdef"])
    assert ids_BW[0, 3:].tolist() == [1, 1, 1, 1]       # </s> ends and pads
    assert mask_BW.tolist() == [[1, 1, 1, 1, 0, 0, 0], [1] * 7]


@pytest.mark.parametrize("text", TEXTS[:-2])
def test_scratch_tokenizer_encodes_anything_when_it_has_never_seen_it(scratch, text):
    ids_BW, mask_BW = scratch.texts([text])
    assert ids_BW[0, 0] == scratch.tokenizer.bos_token_id
    assert ids_BW[0, -1] == scratch.tokenizer.eos_token_id
    assert ids_BW.shape[1] <= 12
    assert mask_BW.all()
    assert ids_BW.max() < len(scratch.tokenizer)


def test_scratch_tokenizer_has_whole_words_when_they_are_frequent(scratch):
    ids_BW, _ = scratch.texts(["a red ring slides left"])
    assert ids_BW.shape == (1, 7)
    assert scratch.tokenizer.decode(ids_BW[0, 1:-1]).strip() == "a red ring slides left"


def test_scratch_tokenizer_is_the_same_when_made_again(scratch):
    captions = ["a red ring slides left", "then a blue ring grows"] * 3
    again = HcmiProcessor.from_captions(captions, 400, 12, 16)
    assert again.tokenizer.get_vocab() == scratch.tokenizer.get_vocab()


def test_processor_is_the_same_when_saved_and_loaded(scratch, tmp_path):
    scratch.save_pretrained(tmp_path)
    loaded = HcmiProcessor.from_pretrained(tmp_path)
    assert loaded.describe() == scratch.describe() == {"image_size": 16, "num_words": 12, "image_mean": [0.5] * 3,
                                                       "image_std": [0.25] * 3}
    assert loaded.untrained.tolist() == scratch.untrained.tolist() != []
    for left, right in zip(loaded.texts(TEXTS), scratch.texts(TEXTS), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize(("text", "known", "left_out"), [
    ("watch how a red ring slides left", "a red ring slides left", ["watch", "how"]),
    ("a red ring, whereupon (yesterday) a blue ring grows", "a red ring a blue ring grows",
     [",", "whereupon", "(", "yesterday", ")"]),
    ("then a blue ring grows", "then a blue ring grows", []),
    ("A  Red ring", "A  Red ring", []),
    ('a "red ring"', "a red ring", ['"', '"']),
    ("red,ring", "red ring", [","]),
    ("a\tred\u00a0ring\u200bslides", "a\tred\u00a0ring\u200bslides", []),
    ("\ufeffred sli\u00addes", "\ufeffred sli\u00addes", []),
    ("2red rings3", "red", ["2", "rings", "3"]),
    ("Красное кольцо", "", ["Красное", "кольцо"]),
    ("", "", []),
    (" \u200b\u00a0", "", []),
])
def test_words_that_no_training_caption_has_are_left_out(scratch, text, known, left_out):
    assert scratch.known(text) == (known, left_out)
    ids_BW, mask_BW = scratch.texts([text, "a red ring slides left"])
    needed_BW, needed_mask_BW = scratch.texts([known, "a red ring slides left"])
    assert torch.equal(ids_BW, needed_BW)
    assert torch.equal(mask_BW, needed_mask_BW)


WORDY = ["a red ring slides left", "Then a BLUE ring grows; slowly", "l'été à Zürich", "the 3D film, in 4k",
         "красное кольцо", "हिन्दी में", "mit Bäumen (grün), e\u0301tude", "reds and ringside"]
WORDS = sorted({"red", "ring", "slides", "BLUE", "été", "Zürich", "3", "D", "k", "кольцо", "हिन्दी", "में", "grün",
                "e\u0301tude", "reds", "ringside"})
BETWEEN = st.text(st.characters(exclude_categories=("L", "M", "N", "C"), include_characters="\t\n\x00\x1f\u200b"))
INVISIBLE = st.text(st.sampled_from("\u00ad\u200c\u200d\u200e\u2060\ufeff"), max_size=3)


@pytest.fixture(scope="module")
def wordy():
    return HcmiProcessor.from_captions(WORDY, 600, 40, 16)


def pieces(processor: HcmiProcessor, text: str) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


@given(first=st.sampled_from(WORDS), second=st.sampled_from(WORDS), before=BETWEEN, after=BETWEEN,
       between=BETWEEN.filter(bool), edge=INVISIBLE)
@example("red", "ring", '"', '"', "-", "")
@example("red", "ring", "(", ")", "\u00a0", "\ufeff")
@example("red", "ring", "\u201c", "\u201d", "_", "\u00ad")
@example("red", "ring", "\u2764\ufe0f", "", "\u2014", "\u200d")
def test_a_word_is_the_same_tokens_whatever_stands_around_it(wordy, first, second, before, after, between, edge):
    """In captions and queries; with thousands of characters that are neither letters nor digits, and invisible ones."""
    text = before + edge + first + edge + between + edge + second + edge + after
    alone = [pieces(wordy, word) for word in (first, second)]
    assert all(ids and not set(ids) & set(wordy.untrained.tolist()) for ids in alone)
    encoded = wordy.tokenizer(text, add_special_tokens=False)
    made: dict[int, list[int]] = {}
    for at, word in enumerate(encoded.word_ids(0)):
        made.setdefault(word, []).append(encoded["input_ids"][at])
    spans = {word: text[slice(*encoded.word_to_chars(0, word))] for word in made}
    assert [made[word] for word in made if is_word(spans[word])] == alone
    known, left_out = wordy.known(text)
    assert not [word for word in left_out if is_word(word)]
    found = [(word, ids) for word, ids in query_words(wordy.tokenizer, known, 400) if is_word(word)]
    assert [visible(word) for word, _ in found] == [visible(first), visible(second)]
    ids = wordy.tokenizer(known)["input_ids"]
    assert [[ids[at] for at in places] for _, places in found] == alone


def is_word(text: str) -> bool:
    return any(char.isalnum() for char in text)


def visible(text: str) -> str:
    return "".join(char for char in text if unicodedata.category(char) != "Cf")


@given(caption=st.text(st.characters(exclude_categories=("Cs", "Cn", "Co"))))
def test_known_leaves_nothing_out_when_the_text_is_a_training_caption(caption):
    processor = HcmiProcessor.from_captions([caption, "a red ring"], 300, 40, 16)
    known, left_out = processor.known(caption)
    assert left_out == []
    assert pieces(processor, known) == pieces(processor, caption)


def test_a_processor_of_an_earlier_version_loads_and_encodes_as_it_did(scratch, tmp_path):
    """Up to 0.1.0 the space before a word was part of it, and punctuation was joined to what came after it."""
    old = HcmiProcessor.from_captions(["a red ring slides left", "then a blue ring grows"] * 3, 400, 12, 16)
    backend = old.tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    old.save_pretrained(tmp_path)
    loaded = HcmiProcessor.from_pretrained(tmp_path)
    text = 'then a blue ring "slides" left'
    assert pieces(loaded, text) == pieces(old, text)
    assert pieces(loaded, '"slides') != pieces(scratch, '"slides')
    assert loaded.known("A  Red ring whereupon") == ("A Red ring", ["whereupon"])
    assert query_words(loaded.tokenizer, "a red ring", 12) == [("a", [1]), ("red", [2]), ("ring", [3])]


def test_unknown_words_take_no_place_from_known_ones_when_a_text_is_cut(scratch):
    """12 tokens: 10 words, a start and an end."""
    ids_BW, _ = scratch.texts(["whereupon " * 20 + "a red ring slides left"])
    assert scratch.tokenizer.decode(ids_BW[0, 1:-1]).strip() == "a red ring slides left"


def test_pretrained_tokenizer_leaves_no_word_out(real):
    assert real.known("a qwxyzzy Красное") == ("a qwxyzzy Красное", [])


# frames

def clips_own(image, **options) -> torch.Tensor:
    """An image as `transformers` preprocesses it, [C, H, X]."""
    made = CLIPImageProcessorPil(**options)(images=image, return_tensors="pt")
    return torch.as_tensor(made["pixel_values"][0])


def squared(pixels: np.ndarray) -> np.ndarray:
    return np.array(centre_crop(pixels, 224))


def test_frames_are_clips_own_pixels_to_the_last_bit_when_photographs_are_real(real, clip_data):
    photographs = sorted((clip_data / "images").glob("*.jpg"))
    assert len(photographs) == 7
    for path in photographs:
        image = Image.open(path).convert("RGB")
        needed, found = clips_own(image), real.frames(squared(np.asarray(image)))
        assert found.shape == (3, 224, 224)
        assert torch.equal(found, needed), f"{path.name}: off by {(found - needed).abs().max()}"


@pytest.mark.parametrize("shape", [(480, 640), (641, 480), (223, 225), (224, 224), (300, 901), (100, 60)])
def test_frames_are_clips_own_pixels_when_sides_are_odd(real, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert torch.equal(real.frames(squared(pixels)), clips_own(Image.fromarray(pixels)))


def test_frames_are_transformers_own_for_every_grey_level_when_normalised(real):
    levels = np.arange(256, dtype=np.uint8)
    pixels = np.zeros((224, 224, 3), np.uint8)
    pixels[0, :224], pixels[1, :32] = levels[:224, None], levels[224:, None]
    assert torch.equal(real.frames(pixels), clips_own(pixels, do_resize=False, do_center_crop=False))


def test_frames_are_normalised_alike_when_they_come_in_batches(scratch):
    frames = torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = scratch.frames(frames)
    assert found.shape == (2, 3, 3, 16, 16)
    assert found.is_contiguous()
    assert torch.equal(found[1, 2], scratch.frames(frames[1, 2].numpy()))
    assert found[1, 2, 0, 5, 7] == pytest.approx((float(frames[1, 2, 5, 7, 0]) / 255 - 0.5) / 0.25, abs=1e-6)


def test_frames_are_refused_when_their_size_is_another(scratch):
    with pytest.raises(ModelError) as caught:
        scratch.frames(np.zeros((2, 20, 24, 3), np.uint8))
    assert str(caught.value) == ("frames: need 16 x 16 pixels, as the model was made for, got 24 x 20. "
                                 "Set shards.size to the model's image size.")


def test_from_backbone_names_what_is_missing_when_there_is_no_preprocessor(tmp_path):
    folder = save_small_clip(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"need its tokenizer and preprocessor files, got: .+\. Copy all") as caught:
        HcmiProcessor.from_backbone(str(folder), 32, 32)
    assert "\n" not in str(caught.value)
