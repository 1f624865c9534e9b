"""The model card of a release: it parses as the hub parses it. That of a real release is in test_promote.py."""

import pytest
from huggingface_hub import ModelCard

from hcmi.promote.card import model_card

RECORD = {"made": "2026-11-27T00:00:00+00:00", "why": "It is better | by far.", "model": {"fingerprint": "f" * 64},
          "data": {"shards_sha256": "a" * 64, "split_sha256": "b" * 64},
          "code": {"hcmi": "1.0", "revision": None, "changed": None}}
FIGURES = {"R@1": 43.25, "R@5": 70.0, "R@10": 80.0, "MdR": 2.0, "R@1_ci95": [40.0, 46.5]}


def card_of(backbone: str) -> ModelCard:
    protocol = {"backbone": backbone, "dataset": "msrvtt", "split": "test", "head": "hcmi", "num_videos": 1000,
                "num_texts": 1000}
    return ModelCard(model_card("v3", RECORD, {"protocol": protocol, "raw": {"t2v": FIGURES, "v2t": FIGURES}}))


@pytest.mark.parametrize(("backbone", "base", "said"), [
    ("scratch", None, "trained from scratch"),
    ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32", "those of `openai/clip-vit-base-patch32`"),
    ("/home/me/clip", None, "those of a checkpoint that is not on the hub")])
def test_card_names_the_backbone_only_where_the_hub_has_it(backbone, base, said):
    card = card_of(backbone)
    assert card.data.base_model == base
    assert said in card.text
    assert "/home/me" not in card.content


def test_card_shows_figures_with_their_interval():
    assert "| text to video | 43.2 [40.0, 46.5] | 70.0 | 80.0 | 2 |" in card_of("scratch").text
    assert "| why it was released | It is better \\| by far. |" in card_of("scratch").text


def test_card_names_a_checkpoint_in_a_folder_of_two_names_by_neither(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my/clip").mkdir(parents=True)
    assert card_of("my/clip").data.base_model is None
    assert card_of("models/clip").data.base_model is None
