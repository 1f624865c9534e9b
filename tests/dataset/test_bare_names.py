"""The files of a published data set, by their names without folder and ending."""

import unicodedata
from pathlib import Path

from hcmi.dataset import annotations, files_by_bare_name


def test_videos_are_found_when_nested_converted_or_without_ending(tmp_path):
    names = ("TrainVal/video0.mp4", "b/10052357@N03_7585070382_5762149bfc.mp4",
             "0001_Film/0001_00.00.51.926-00.00.54.129.avi", "z/video0.mkv")
    for name in names:
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    found = files_by_bare_name(tmp_path)
    assert found["video0"].endswith("TrainVal/video0.mp4")
    assert annotations.bare_name("10052357@N03_7585070382_5762149bfc.") in found
    assert "0001_00.00.51.926-00.00.54.129" in found
    assert len(found) == 3


def test_video_is_found_by_its_name_when_systems_and_macs_have_been_there(tmp_path):
    nfd = unicodedata.normalize("NFD", "café")
    for name in (".Trash/v_1.mp4", "__MACOSX/v_1.mp4", "part/v_1.webm", "._v_2.mp4", "v_2.MP4", f"{nfd}.avi"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    found = {name: Path(path).relative_to(tmp_path / "videos").as_posix()
             for name, path in files_by_bare_name(tmp_path).items()}
    assert found == {"v_1": "part/v_1.webm", "v_2": "v_2.MP4", "café": f"{nfd}.avi"}
