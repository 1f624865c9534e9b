"""Long videos in a folder: their windows, against a loop that decodes and encodes each window by itself."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from search_world import T, call_hcmi, searchable_model, write_video
from video_files import claim_seconds, cut_off, last_stands, write_pictures

import hcmi.search.encode_files
import hcmi.search.folder_index
from hcmi.config import WindowsConfig
from hcmi.errors import ConfigError
from hcmi.index import SearchIndex
from hcmi.search import Retriever
from hcmi.search.command import with_options
from hcmi.search.encode_files import _first_frames
from hcmi.search.folder_index import WINDOWS, index_folder
from hcmi.video import DecoderPool
from hcmi.video.decode import decode_clip, decode_times
from hcmi.video.files import refusal

FPS = 12
# With T = 6: 3 frames a second.
RULE = WindowsConfig(cut="fixed", seconds=2.0, overlap_seconds=1.0, whole_seconds=3.0)
SECONDS = 9.5


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A film whose colour changes all the time, a short video, and their index."""
    root = tmp_path_factory.mktemp("long")
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 255, (round(SECONDS * FPS) + 1, 3)).cumsum(0) // 3 % 256
    write_pictures(root / "videos/film.mp4", (np.full((48, 48, 3), colour, np.uint8) for colour in colours), FPS,
                   g="30", crf="10")
    write_video(root / "videos/short.mp4", 200)
    model = searchable_model()
    found = index_folder(model, root / "videos", root / "cache", RULE, num_workers=1)
    return root, model, SearchIndex.open(found.path)


def film_rows(index, name="film.mp4"):
    rows = index.live_rows()
    clips = index.clips(rows)
    order = sorted((clip.start_s, row) for row, clip in zip(rows, clips, strict=True) if clip.path.endswith(name))
    return np.array([row for _, row in order])


def test_windows_of_a_film_are_those_of_the_rule(world):
    _, _, index = world
    rows = film_rows(index)
    windows = [(clip.start_s, clip.end_s) for clip in index.clips(rows)]
    assert windows[:3] == [(0, 2), (1, 3), (2, 4)]
    assert windows[-1] == (pytest.approx(7.667, abs=1e-3), pytest.approx(9.583, abs=1e-3)), "it ends with the film"
    assert len(index) == len(rows) + 1
    for clip, times_T in zip(index.clips(rows), index.times(rows), strict=True):
        assert np.allclose(times_T, clip.start_s + (np.arange(T) + 0.5) / 3, atol=1e-2)


def test_tokens_of_each_window_are_those_of_a_loop_that_decodes_it_alone(world):
    root, model, index = world
    rows = film_rows(index)
    for row, clip in list(zip(rows, index.clips(rows), strict=True))[:-1]:
        alone = decode_clip(root / "videos/film.mp4", T, model.processor.image_size, clip.start_s, clip.end_s)
        with torch.inference_mode():
            wanted = model.encode_videos(model.processor.frames(alone.frames[None]), torch.ones(1, T, dtype=torch.bool))
        got = index.tokens(row[None])
        for name in ("video_BD", "frames_BTD", "clips_BCD"):
            assert torch.allclose(getattr(got, name), getattr(wanted, name), atol=5e-3), (clip.start_s, name)


def test_parts_of_a_film_give_the_same_windows_when_it_is_decoded_in_several(world, tmp_path, monkeypatch):
    root, model, index = world
    monkeypatch.setattr(hcmi.search.encode_files, "PART_SECONDS", 2.5)
    monkeypatch.setattr(hcmi.search.encode_files, "WINDOWS", 2)
    found = index_folder(model, root / "videos", tmp_path / "cache", RULE, num_workers=2)
    other = SearchIndex.open(found.path)
    rows, others = film_rows(index), film_rows(other)
    assert index.clips(rows) == other.clips(others)
    assert torch.equal(index.tokens(rows).frames_BTD, other.tokens(others).frames_BTD)


def test_each_frame_goes_through_the_towers_once(world, tmp_path, monkeypatch):
    root, model, _ = world
    seen = []
    frame_features = model.frame_features
    monkeypatch.setattr(model, "frame_features", lambda pixels: seen.append(pixels.shape[1]) or frame_features(pixels))
    index_folder(model, root / "videos", tmp_path / "cache", RULE, num_workers=1)
    assert sum(seen) == 29 + T, "9.58 s with 3 frames a second, and the short video"


def test_frame_that_stays_long_is_taken_for_every_time_at_which_it_is_shown(tmp_path):
    """Variable frame rate: frames at 0, 0.1, ... 0.9 and then one at 8 s."""
    import av

    with av.open(str(tmp_path / "slides.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number, pts in enumerate([*range(10), 80]):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * number, np.uint8), "rgb24")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    shown = decode_times(tmp_path / "slides.mkv", [0.05, 0.35, 0.95, 4.0, 7.9, 8.0], 16, 0.0, None)
    assert np.abs(shown.frames.mean((1, 2, 3)) - np.array([0, 60, 180, 180, 180, 200])).max() < 4
    assert shown.times_s == (0.05, 0.35, 0.95, 4.0, 7.9, 8.0)


def test_frames_of_a_short_video_are_spread_over_time_when_its_rate_changes(world, tmp_path):
    """30 frames in 0.5 s, then one until the last at 10 s: by number, all but one would be of the first half second."""
    _, model, _ = world
    levels, times = [*range(30), 250, 250], [*range(30), 30, 600]
    write_pictures(tmp_path / "videos/screen.mkv", (np.full((32, 32, 3), level, np.uint8) for level in levels), 60,
                   times=times, crf="10")
    index = SearchIndex.open(index_folder(model, tmp_path / "videos", tmp_path / "cache", WINDOWS, num_workers=1).path)
    assert np.allclose(index.times(index.live_rows())[0], (np.arange(T) + 0.5) * 10 / T, atol=0.02)


def test_answers_of_a_film_are_one_hit_whose_moments_share_no_second(world):
    root, model, index = world
    retriever = Retriever(model, index.folder)
    hits = retriever.search("a red ring")
    assert sorted(hit.path for hit in hits) == sorted(str(path) for path in (root / "videos").glob("*.mp4"))
    film = next(hit for hit in hits if hit.path.endswith("film.mp4"))
    moments = [(film.start_s, film.end_s), *((other.start_s, other.end_s) for other in film.more)]
    assert 1 < len(moments) <= 5
    for number, (start, end) in enumerate(moments):
        assert all(end <= other[0] or other[1] <= start for other in moments[:number])
    scores = [film.score, *(other.score for other in film.more)]
    assert scores == sorted(scores, reverse=True)
    text = retriever.encode_query("a red ring")
    with torch.inference_mode():
        every = model.combine(model.similarities(text, index.tokens(film_rows(index))))[0]
    assert film.score == pytest.approx(float(every.max()))


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """A film of shots of 1.5, 5 and 2.5 s, each of which stays the same, and its index by shots."""
    pytest.importorskip("scenedetect", reason="scenedetect is not installed: pip install 'hcmi[shots]'")
    root = tmp_path_factory.mktemp("shots")
    colours = [(colour, round(seconds * FPS)) for colour, seconds in (((250, 0, 0), 1.5), ((0, 0, 250), 5.0),
                                                                      ((0, 200, 0), 2.5))]
    pictures = (np.full((48, 48, 3), colour, np.uint8) for colour, count in colours for _ in range(count))
    write_pictures(root / "videos/film.mp4", pictures, FPS, g="30", crf="10")
    model = searchable_model()
    found = index_folder(model, root / "videos", root / "cache", RULE.model_copy(update={"cut": "shots"}), 1)
    return root, model, SearchIndex.open(found.path)


def test_windows_are_shots_and_long_shots_are_divided_like_films(shots):
    _, _, index = shots
    windows = [(clip.start_s, clip.end_s) for clip in index.clips(film_rows(index))]
    assert windows == [(0, 1.5), (1.5, 3.5), (2.5, 4.5), (3.5, 5.5), (4.5, 6.5), (6.5, 8.375), (7.125, 9.0)], (
        "2.5 s have 8 frames; a window has 6")


def test_tokens_of_each_shot_are_those_of_a_loop_that_decodes_it_alone(shots, world):
    root, model, index = shots
    for row, clip in zip(film_rows(index), index.clips(film_rows(index)), strict=True):
        alone = decode_clip(root / "videos/film.mp4", T, model.processor.image_size, clip.start_s, clip.end_s)
        with torch.inference_mode():
            wanted = model.encode_videos(model.processor.frames(alone.frames[None]), torch.ones(1, T, dtype=torch.bool))
        assert torch.allclose(index.tokens(row[None]).frames_BTD, wanted.frames_BTD, atol=5e-3), clip.start_s
        assert ((clip.start_s <= index.times(row[None])) & (index.times(row[None]) < clip.end_s)).all()


def test_film_whose_cuts_cannot_be_found_is_one_shot(shots, tmp_path, monkeypatch):
    root, model, _ = shots
    real = hcmi.search.encode_files.cuts_jobs
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    monkeypatch.setattr(hcmi.search.encode_files, "cuts_jobs",
                        lambda *film: (replace(job, path=str(broken)) for job in real(*film)))
    rule = RULE.model_copy(update={"cut": "shots"})
    other = SearchIndex.open(index_folder(model, root / "videos", tmp_path / "cache", rule, 1).path)
    assert [clip.start_s for clip in other.clips(film_rows(other))] == [0, 1, 2, 3, 4, 5, 6, 7]


def test_command_names_the_extra_when_the_detector_is_missing(world, tmp_path, monkeypatch):
    root, model, _ = world
    model.save_pretrained(root / "model")
    monkeypatch.setenv("HCMI_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hcmi.video.shots.importlib.util.find_spec", lambda name: None)
    (tmp_path / "films").mkdir()
    write_video(tmp_path / "films/film.mp4", 250, seconds=31, fps=4)
    failed = call_hcmi("search", "a ring", "--videos", tmp_path / "films", "--model", root / "model", "--shots", code=1)
    assert failed.stderr.splitlines()[-1] == (
        "hcmi: windows.cut shots: need scenedetect to find shots, got no such package. Run `pip install "
        "'hcmi[shots]'`, or set windows.cut to fixed.")
    assert with_options(WINDOWS, None, None, shots=True) == WINDOWS.model_copy(update={"cut": "shots"})


def test_film_like_a_window_is_another_file(world):
    _, model, index = world
    window = index.clips(film_rows(index)[:1])[0]
    assert [hit.path.rsplit("/", 1)[1] for hit in Retriever(model, index.folder).similar(window.video_id)] == [
        "short.mp4"]


def test_explanation_of_a_window_has_its_frames(world):
    _, model, index = world
    retriever = Retriever(model, index.folder)
    hit = next(hit for hit in retriever.search("a red ring") if hit.path.endswith("film.mp4"))
    why = retriever.explain("a red ring", hit)
    assert len(why.times_s) == T
    assert hit.start_s - 1e-3 <= why.times_s[-1]
    assert json.loads(json.dumps(why.record()))["hit"]["more"][0]["video_id"] == hit.more[0].video_id


def test_answers_name_further_moments_when_the_command_searches_a_film(world, tmp_path, monkeypatch):
    root, model, _ = world
    model.save_pretrained(root / "model")
    monkeypatch.setenv("HCMI_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (root / "films").mkdir(exist_ok=True)
    (root / "films/film.mp4").write_bytes(write_video(tmp_path / "film.mp4", 250, seconds=31, fps=4).read_bytes())
    asked = ("search", "a red ring", "--videos", root / "films", "--model", root / "model", "--window", 10)
    hit, = json.loads(call_hcmi(*asked, "--json").stdout)
    assert [list(hit)[-1], list(hit["more"][0])] == ["more", ["video_id", "score", "start_s", "end_s"]]
    assert "     also " in call_hcmi(*asked).stdout.replace(str(root / "films/film.mp4"), "")
    for wrong, message in ((("--overlap", 9.99), "at least 0.05 less than the window's 10 seconds, got 9.99"),
                           (("--window", 0.01), "--window: need at least 0.5 seconds, got 0.01")):
        assert message in call_hcmi(*asked, *wrong, code=1).stderr
    refused = call_hcmi("search", "a red ring", "--model", root / "model", "--overlap", 1, code=1)
    assert "--window, --overlap and --shots: need --videos FOLDER" in refused.stderr


def test_film_of_twelve_hours_is_named_and_the_others_are_searched(world, tmp_path, monkeypatch):
    root, model, _ = world
    monkeypatch.setattr("hcmi.video.windows.MAX_HOURS", 5 / 3600)
    found = index_folder(model, root / "videos", tmp_path / "cache", RULE, num_workers=1)
    assert list(found.news) == ["film.mp4"]
    assert found.news["film.mp4"].endswith("Cut it into parts.")
    assert len(SearchIndex.open(found.path)) == 1


def test_part_that_cannot_be_decoded_leaves_out_only_its_windows(world, tmp_path, monkeypatch):
    root, model, index = world
    monkeypatch.setattr(hcmi.search.encode_files, "PART_SECONDS", 2.0)
    real = hcmi.search.encode_files._jobs
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")

    def without_one(sha256, film, model):
        for job in real(sha256, film, model):
            yield replace(job, path=str(broken)) if job.key[1] == 12 else job

    monkeypatch.setattr(hcmi.search.encode_files, "_jobs", without_one)
    found = index_folder(model, root / "videos", tmp_path / "cache", RULE, num_workers=1)
    other = SearchIndex.open(found.path)
    left = [clip.start_s for clip in other.clips(film_rows(other))]
    assert left == [clip.start_s for clip in index.clips(film_rows(index)) if clip.end_s <= 4 or clip.start_s >= 6]


def fail(monkeypatch, reason: str, fails) -> None:
    """Let the machine fail with those jobs of which `fails` is true."""
    class FailingPool(DecoderPool):
        def map(self, jobs):
            for job, result in super().map(jobs):
                yield job, refusal(reason, job.path) if not isinstance(job, str) and fails(job) else result

    monkeypatch.setattr(hcmi.search.encode_files, "DecoderPool", FailingPool)
    monkeypatch.setattr(hcmi.search.encode_files, "PART_SECONDS", 2.0)


def third_part(job) -> bool:
    return job.key[1] == 12


LEFT_S = [0, 1, 2, 6, 7, 7.667]     # of 9 windows; the part is 4.0 - 6.0 s, which those at 3, 4 and 5 s need


@pytest.fixture
def visit(world, tmp_path):
    """Brings the index of a folder with the film up to date: where its windows begin, and what it says of films."""
    root, model, _ = world
    (tmp_path / "films").mkdir()
    (tmp_path / "films/film.mp4").write_bytes((root / "videos/film.mp4").read_bytes())

    def look(**options):
        found = index_folder(model, tmp_path / "films", tmp_path / "cache", RULE, num_workers=1, **options)
        index = SearchIndex.open(found.path)
        assert found.skipped == {}
        return sorted(clip.start_s for clip in index.clips(index.live_rows())), found.partial
    return look


@pytest.mark.parametrize("reason", ["timeout", "crashed", "unexpected"])
def test_part_that_the_machine_could_not_decode_is_tried_again_and_named_until_then(visit, tmp_path, monkeypatch,
                                                                                     reason):
    film, moved = tmp_path / "films/film.mp4", tmp_path / "films/moved.mp4"
    told = "need a film that can be decoded to its end, got 6 of 9 windows. The others are not found. A later search"
    with monkeypatch.context() as machine:
        fail(machine, reason, third_part)
        assert visit() == (LEFT_S, {"film.mp4": f"{film}: {told} tries again."})
    with monkeypatch.context() as early:
        early.setattr(DecoderPool, "_start", pytest.fail)
        assert visit() == (LEFT_S, {"film.mp4": f"{film}: {told} tries again."})
        film.rename(moved)
        film.symlink_to(moved)
        moved.chmod(0o600)
        notes = {path.name: f"{path}: {told} tries again." for path in (film, moved)}
        assert visit() == visit() == (LEFT_S, notes)
    monkeypatch.setattr(hcmi.search.folder_index, "RETRY_SECONDS", -1.0)        # as if it had passed
    assert visit() == ([0, 1, 2, 3, 4, 5, 6, 7, 7.667], {})
    monkeypatch.setattr(DecoderPool, "_start", pytest.fail)
    assert visit() == ([0, 1, 2, 3, 4, 5, 6, 7, 7.667], {})


def test_windows_that_were_found_stay_when_the_next_try_fails_as_a_whole(visit, monkeypatch):
    with monkeypatch.context() as machine:
        fail(machine, "timeout", third_part)
        before = visit()
        machine.setattr(hcmi.search.folder_index, "RETRY_SECONDS", -1.0)
        for reason in ("crashed", "missing"):
            fail(machine, reason, lambda job: True)
            assert visit() == before
    monkeypatch.setattr(hcmi.search.folder_index, "RETRY_SECONDS", -1.0)
    assert visit() == ([0, 1, 2, 3, 4, 5, 6, 7, 7.667], {})


@pytest.mark.parametrize("adds", [False, True])
def test_missing_part_is_not_forgotten_when_the_run_is_killed(visit, monkeypatch, adds):
    real = hcmi.search.folder_index.add_videos

    def interrupt(*given):
        if adds:
            real(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as machine:
        fail(machine, "timeout", third_part)
        machine.setattr(hcmi.search.folder_index, "add_videos", interrupt)
        with pytest.raises(KeyboardInterrupt):
            visit()
        machine.setattr(hcmi.search.folder_index, "add_videos", real)
        starts_s, partial = visit()
    assert (starts_s, list(partial)) == (LEFT_S, ["film.mp4"])


def test_no_film_is_noted_as_whole_before_it_is_in_the_index(visit, tmp_path, monkeypatch):
    """Of two films whose parts are missing one is read again with success, and the run is killed at the other."""
    film, other = tmp_path / "films/film.mp4", tmp_path / "films/other.mp4"
    other.write_bytes(film.read_bytes() + b"\0\0\0\x08free")
    real = hcmi.search.folder_index.add_videos

    def interrupt(folder, clips, batches):
        if str(film) in {clip.path for clip in clips}:
            raise KeyboardInterrupt
        return real(folder, clips, batches)

    with monkeypatch.context() as machine:
        fail(machine, "timeout", third_part)
        assert visit()[0] == sorted(2 * LEFT_S)
        fail(machine, "timeout", lambda job: third_part(job) and job.path == str(film))
        machine.setattr(hcmi.search.folder_index, "RETRY_SECONDS", -1.0)
        machine.setattr(hcmi.search.folder_index, "add_videos", interrupt)
        with pytest.raises(KeyboardInterrupt):
            visit()
    monkeypatch.setattr(hcmi.search.folder_index, "RETRY_SECONDS", -1.0)
    assert visit() == (sorted(2 * [0, 1, 2, 3, 4, 5, 6, 7, 7.667]), {})


def test_film_is_tried_again_when_another_part_of_it_is_damaged(visit, tmp_path, monkeypatch):
    real = hcmi.search.encode_files._jobs
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    monkeypatch.setattr(hcmi.search.encode_files, "_jobs", lambda *film: (
        replace(job, path=str(broken)) if job.key[1] == 0 else job for job in real(*film)))
    with monkeypatch.context() as machine:
        fail(machine, "timeout", third_part)
        assert visit()[0] == LEFT_S[2:]
    monkeypatch.setattr(hcmi.search.encode_files, "PART_SECONDS", 2.0)
    monkeypatch.setattr(hcmi.search.folder_index, "RETRY_SECONDS", -1.0)
    starts_s, partial = visit()
    assert starts_s == [2, 3, 4, 5, 6, 7, 7.667]
    assert partial["film.mp4"].endswith("got 7 of 9 windows. The others are not found. Replace the file if it is "
                                        "damaged.")
    assert visit() == (starts_s, {})


def test_shots_that_the_machine_could_not_find_are_looked_for_again(shots, tmp_path, monkeypatch):
    root, model, index = shots
    rule = RULE.model_copy(update={"cut": "shots"})
    with monkeypatch.context() as machine:
        fail(machine, "timeout", lambda job: hasattr(job, "start_s") and not hasattr(job, "num_frames"))
        found = index_folder(model, root / "videos", tmp_path / "cache", rule, 1)
    other = SearchIndex.open(found.path)
    assert [clip.start_s for clip in other.clips(film_rows(other))] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert found.partial == {"film.mp4": f"{root / 'videos/film.mp4'}: need the shots of every minute, got some "
                                         "minutes without. Windows there may span several shots. A later search tries "
                                         "again."}
    monkeypatch.setattr(hcmi.search.folder_index, "RETRY_SECONDS", -1.0)
    found = index_folder(model, root / "videos", tmp_path / "cache", rule, 1)
    other = SearchIndex.open(found.path)
    assert (other.clips(film_rows(other)), found.partial) == (index.clips(film_rows(index)), {})


def test_film_that_ends_before_its_header_says_has_no_moment_past_its_end(world, tmp_path):
    """As a file that was not copied to its end. Of the first minute 9.5 s are there, and nothing of the others."""
    _, model, _ = world
    greys = np.random.default_rng(1).integers(0, 255, round(SECONDS * FPS))
    path = write_pictures(tmp_path / "videos/film.mkv", (np.full((48, 48, 3), grey, np.uint8) for grey in greys), FPS)
    found = index_folder(model, claim_seconds(path, 130.0).parent, tmp_path / "cache", RULE, num_workers=1)
    index = SearchIndex.open(found.path)
    assert [(clip.start_s, clip.end_s) for clip in index.clips(film_rows(index, "film.mkv"))] == [
        (start, start + 2) for start in range(8)]
    assert found.partial == {"film.mkv": f"{path}: need a film that can be decoded to its end, got 8 of 129 windows. "
                                         "The others are not found. Replace the file if it is damaged."}
    assert found.skipped == index_folder(model, path.parent, tmp_path / "cache", RULE).partial == {}
    assert Retriever.from_folder(path.parent, model, cache=tmp_path / "new", windows=RULE).notes == [
        *found.partial.values()]


def noise(seconds: float, fps: int = 10):
    """Pictures of which each needs some bytes."""
    generator = np.random.default_rng(2)
    return (generator.integers(0, 255, (32, 32, 3), np.uint8) for _ in range(round(seconds * fps)))


def clips_and_notes(model, folder, cache) -> tuple[list[tuple[float, float]], dict[str, str]]:
    """The seconds of what is found of the one file of a folder, and what is said of it."""
    found = index_folder(model, folder, cache, RULE, num_workers=1)
    index = SearchIndex.open(found.path)
    return sorted((clip.start_s, clip.end_s) for clip in index.clips(index.live_rows())), found.partial


@pytest.mark.parametrize("part_s", [60.0, 2.5])
@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_film_that_is_cut_off_within_a_part_has_no_moment_past_its_pictures(world, tmp_path, monkeypatch, ending,
                                                                            part_s):
    """6 s of 10 are there; the last part with pictures is the only one, or that from 4.67 s."""
    monkeypatch.setattr(hcmi.search.encode_files, "PART_SECONDS", part_s)
    path = cut_off(write_pictures(tmp_path / f"videos/film.{ending}", noise(10.0), 10, index_first=ending == "mp4",
                                  g="5", bf="0"), 6.0)
    assert clips_and_notes(world[1], path.parent, tmp_path / "cache") == (
        [(0, 2), (1, 3), (2, 4), (3, 5), (4, 6)],
        {path.name: f"{path}: need a film that can be decoded to its end, got 5 of 9 windows. The others are not "
                    "found. Replace the file if it is damaged."})


def test_film_has_no_moment_past_its_pictures_when_its_sound_is_longer(world, tmp_path):
    path = write_pictures(tmp_path / "videos/film.mp4", noise(6.0), 10, sound_s=10.0)
    clips, notes = clips_and_notes(world[1], path.parent, tmp_path / "cache")
    assert clips == [(0, 2), (1, 3), (2, 4), (3, 5), (4, 6)]
    assert "got 5 of" in notes["film.mp4"]


def test_film_is_whole_when_its_sound_is_a_little_longer(world, tmp_path):
    path = write_pictures(tmp_path / "videos/film.mp4", noise(6.0), 10, sound_s=6.2)
    clips, notes = clips_and_notes(world[1], path.parent, tmp_path / "cache")
    assert (clips[:5], len(clips), notes) == ([(0, 2), (1, 3), (2, 4), (3, 5), (4, 6)], 6, {})


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_short_video_that_is_cut_off_ends_with_its_pictures(world, tmp_path, ending):
    path = cut_off(write_pictures(tmp_path / f"videos/short.{ending}", noise(3.0), 10, index_first=ending == "mp4",
                                  g="5", bf="0"), 1.2)
    assert clips_and_notes(world[1], path.parent, tmp_path / "cache") == (
        [(0, 1.2)], {path.name: f"{path}: need a video that can be decoded to its end, got 1.2 of 3.0 seconds. "
                                "The rest is not found. Replace the file if it is damaged."})


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "flv", "ts"])
def test_short_video_that_is_whole_lasts_as_long_as_its_header_says(world, tmp_path, ending):
    path = write_pictures(tmp_path / f"videos/short.{ending}", noise(2.5), 10, bf="0")
    assert clips_and_notes(world[1], path.parent, tmp_path / "cache") == ([(0, pytest.approx(2.5))], {})


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_short_video_lasts_as_long_as_its_last_picture_or_its_sound(world, tmp_path, ending):
    short = write_pictures(tmp_path / f"still/short.{ending}", noise(1.0), 10, bf="0")
    path = last_stands(short, 1.5)
    short.unlink()
    assert clips_and_notes(world[1], path.parent, tmp_path / "cache") == ([(0, pytest.approx(2.4))], {})
    path = write_pictures(tmp_path / f"sound/short.{ending}", noise(1.0), 10, sound_s=2.5)
    clips, notes = clips_and_notes(world[1], path.parent, tmp_path / "cache")
    assert (clips, notes) == ([(0, pytest.approx(2.5, abs=0.1))], {})


@pytest.mark.parametrize(("seconds", "overlap_s", "frames_apart"), [
    (4.0, 3.0, 3),      # the default
    (4.0, 2.5, 4),      # 4.5 frames
    (30.0, 1.0, 11),    # 11.6 frames; 12 would be no overlap
    (10.0, 1.0, 10),    # 10.8
    (8.0, 6.0, 3), (5.0, 3.7, 3), (10.0, 0.0, 12),
    (1.2, 0.8, 4),      # in floating point 3.999999999999999
    (10.0, 9.5, 1)])    # 0.6 of a frame: windows do not begin at the same frame
def test_windows_share_at_least_what_was_asked_and_less_than_a_frame_more(seconds, overlap_s, frames_apart):
    rule = WindowsConfig(cut="fixed", seconds=seconds, overlap_seconds=overlap_s, whole_seconds=0.0)
    firsts = _first_frames(100, rule, 12)
    assert firsts == [*range(0, 88, frames_apart), 88]
    frame_s = seconds / 12
    shared_s = seconds - frames_apart * frame_s
    assert (overlap_s - 1e-6 <= shared_s < overlap_s + frame_s - 1e-6) == (frames_apart > 1)


def test_overlap_keeps_its_share_when_only_the_length_is_given():
    assert with_options(WINDOWS, 8.0, None) == WINDOWS.model_copy(update={"seconds": 8.0, "overlap_seconds": 6.0})
    assert with_options(WINDOWS, None, 1.0).overlap_seconds == 1.0
    with pytest.raises(ConfigError, match=r"--window: need at least 0\.5 seconds, got nan"):
        with_options(WINDOWS, float("nan"), None)


def test_short_picture_with_long_sound_is_found(tmp_path):
    """1 s of pictures in a file that lasts 150 s: it has less than one window of them."""
    film = write_video(tmp_path / "videos/film.mkv", 120, seconds=1)
    claim_seconds(film, 150.0)
    found = index_folder(searchable_model(), tmp_path / "videos", tmp_path / "cache", RULE, num_workers=1)
    index = SearchIndex.open(found.path)
    [clip] = index.clips(index.live_rows())
    assert (clip.start_s, found.skipped) == (0.0, {})
    assert "got 1 of" in found.partial["film.mkv"]
