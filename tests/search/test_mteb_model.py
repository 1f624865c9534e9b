"""The wrapper for mteb: its own evaluation of a tiny local task gives the figures that a loop gives."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoint_world import CHECKPOINTS
from search_world import write_video

from hcmi.errors import ModelError
from hcmi.search import Encoder, MtebModel
from hcmi.video import DecodeJob
from hcmi.video.jobs import decode_job

GREYS = (40, 120, 200, 250)
CAPTIONS = ["a dark room", "a grey wall", "a bright sky", "white snow"]


class Video:
    """All frames of a file, with the part of torchcodec's interface that mteb uses."""

    def __init__(self, path, claimed=0):
        """`claimed`: how many frames more than there are the header claims."""
        import av

        with av.open(str(path)) as container:
            self.frames = torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")).movedim(-1, 0)
                                       for frame in container.decode(video=0)])
        self.metadata = SimpleNamespace(num_frames=len(self.frames) + claimed)

    def get_frames_at(self, indices):
        if max(indices) >= len(self.frames):
            raise RuntimeError("Requested next frame while there are no more frames left to decode.")
        return SimpleNamespace(data=self.frames[indices])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mteb")
    CHECKPOINTS["clip"](folder / "clip")
    return folder / "clip", [write_video(folder / f"{grey}.mp4", grey) for grey in GREYS]


@pytest.fixture(scope="module")
def model(world):
    return MtebModel(world[0])


def batches(rows, size=2):
    """What mteb gives: a loader whose `collate_fn` the model sets."""
    return torch.utils.data.DataLoader(rows, batch_size=size, collate_fn=list)


def test_vectors_are_those_of_the_encoder(world, model):
    encoder, paths = Encoder(world[0]), world[1]
    np.testing.assert_allclose(model.encode(batches([{"text": text} for text in CAPTIONS])),
                               encoder.encode_texts(CAPTIONS), atol=1e-5)
    videos = model.encode(batches([{"video": Video(path), "other": 1} for path in paths]))
    np.testing.assert_allclose(videos, encoder.encode_videos(paths), atol=1e-5)
    assert videos.dtype == np.float32


def test_items_of_several_kinds_have_the_mean_vector(world, model):
    parts = [model.encode(batches([row])) for row in ({"text": "a dark room"}, {"video": Video(world[1][0])})]
    both = model.encode(batches([{"text": "a dark room", "video": Video(world[1][0])}]))
    needed = sum(parts)
    np.testing.assert_allclose(both, needed / np.linalg.norm(needed), atol=1e-6)


def test_batch_whose_items_have_different_kinds(world, model):
    """As in mteb's mixed tasks, where what an item lacks is None."""
    rows = [{"text": "a dark room", "video": None}, {"text": None, "video": Video(world[1][0])}, {"text": "white snow"}]
    alone = [model.encode(batches([{name: value for name, value in row.items() if value is not None}]))[0]
             for row in rows]
    np.testing.assert_allclose(model.encode(batches(rows, size=3)), alone, atol=1e-6)


def test_video_that_claims_more_frames_than_it_has(world, model):
    found, wanted = (model.encode(batches([{"video": Video(world[1][0], claimed)}])) for claimed in (2, 0))
    np.testing.assert_array_equal(found, wanted)


def test_similarities_are_cosines(model):
    left, right = np.array([[3.0, 4.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 5.0]])
    np.testing.assert_allclose(model.similarity(left, right), [[0.6, 0.8], [0.0, 1.0]], atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(left, right), [0.6, 1.0], atol=1e-6)


def test_items_that_the_model_cannot_read_are_refused(model):
    with pytest.raises(ModelError, match=r"^hcmi/clip: need items with text, images or video, got none of them"):
        model.encode(batches([{"audio": 1}]))


def test_frames_are_those_that_the_model_sees_everywhere(world, model):
    found = model._collate([{"video": Video(world[1][0])}])[0]["video"]
    job = DecodeJob(0, str(world[1][0]), len(found), 32, square=model.encoder.model.processor.square)
    assert np.array_equal(found, decode_job(job).frames)


@pytest.mark.slow
def test_mteb_measures_the_model_on_a_local_task(world, model):
    """mteb's own evaluation of text-to-video retrieval, on four videos; its import alone takes 17 s."""
    mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install 'hcmi[mteb]'")
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.models_protocols import EncoderProtocol

    names = [f"v{number}" for number in range(len(GREYS))]

    class Videos(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="LocalT2VRetrieval", description="four grey videos", reference=None, type="Any2AnyRetrieval",
            dataset={"path": "local", "revision": "1"}, category="t2v", modalities=["text", "video"],
            eval_splits=["test"], eval_langs=["eng-Latn"], main_score="ndcg_at_10")

        def load_data(self, **_):
            videos = Dataset.from_dict({"id": names, "video": [str(path) for path in world[1]]})
            self.dataset = {"default": {"test": RetrievalSplitData(
                queries=Dataset.from_dict({"id": names, "text": CAPTIONS}),
                corpus=videos.with_transform(lambda rows: {**rows, "video": [Video(path) for path in rows["video"]]}),
                relevant_docs={name: {name: 1} for name in names}, top_ranked=None)}}
            self.data_loaded = True

    assert isinstance(model, EncoderProtocol)
    result = mteb.evaluate(model, Videos(), cache=None)
    found = result.task_results[0].scores["test"][0]
    sims_QV = model.encoder.encode_texts(CAPTIONS) @ model.encoder.encode_videos(world[1]).T
    ranks = 1 + (sims_QV > np.diag(sims_QV)[:, None]).sum(1)
    assert found["ndcg_at_10"] == pytest.approx(np.mean(1 / np.log2(1 + ranks)), abs=1e-4)
    assert found["recall_at_1"] == pytest.approx(np.mean(ranks == 1), abs=1e-4)
    assert result.model_name == "hcmi/clip"


@pytest.mark.slow
def test_mteb_measures_the_model_on_its_own_tasks(world, model, monkeypatch):
    """MSVD in both directions, the second in MVEB: mteb's own classes, but for the download of their data."""
    mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install 'hcmi[mteb]'")
    from datasets import Dataset

    def decoded(rows):
        return {**rows, "video": [Video(path) for path in rows["video"]]} if "video" in rows else rows

    data = Dataset.from_dict({"caption": CAPTIONS, "video": [str(path) for path in world[1]]}).with_transform(decoded)
    sims_QV = model.encoder.encode_texts(CAPTIONS) @ model.encoder.encode_videos(world[1]).T
    assert "MSVDV2TRetrieval" in {task.metadata.name for task in mteb.get_benchmark("MVEB(text, video, v1)").tasks}
    for name, sims in (("MSVDT2VRetrieval", sims_QV), ("MSVDV2TRetrieval", sims_QV.T)):
        task = mteb.get_task(name)
        monkeypatch.setattr(f"{type(task).__module__}.load_dataset", lambda *_, **__: data)
        found = mteb.evaluate(model, task, cache=None).task_results[0].scores["test"][0]
        ranks = 1 + (sims > np.diag(sims)[:, None]).sum(1)
        assert found["ndcg_at_10"] == pytest.approx(np.mean(1 / np.log2(1 + ranks)), abs=1e-4), name
