"""A finished pipeline over grey videos, and incoming batches of every kind."""

from pathlib import Path

import numpy as np
from search_world import searchable_model, write_video

from hcmi.config import Params, load_params
from hcmi.dataset import read_folder, write_manifest
from hcmi.drift import drift
from hcmi.export import export
from hcmi.shards import write_shards

World = tuple[Path, Params]


def make_folder(folder: Path, count: int, low: int, high: int, seed: int, captions: bool = True,
                num_train: int = 0) -> None:
    generator = np.random.default_rng(seed)
    lines = ["video,caption,split"]
    for number in range(count):
        grey = int(generator.integers(low, high))
        seconds = 1.5 if number < num_train else 1.0        # so that no training clip has the bytes of a test clip
        path = folder / "videos" / f"clip_{seed}_{number:03d}.mp4"
        write_video(path, grey, seconds)
        with open(path, "ab") as file:      # an empty box, so that no two files have the same bytes
            file.write((24).to_bytes(4, "big") + b"free" + path.stem.encode().ljust(16)[:16])
        caption = f"a {'red' if grey % 2 else 'blue'} ring of grey {grey} slides left"
        lines.append(f"clip_{seed}_{number:03d}.mp4,{caption},{'train' if number < num_train else 'test'}")
    if captions:
        (folder / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_world(root: Path) -> World:
    """Folders of a finished pipeline with 50 held-out clips and 20 more, and batches of every kind."""
    params = load_params(Path(__file__).parents[2] / "params.yaml")
    dataset = params.dataset.model_copy(update={"name": "folder", "path": str(root / "raw")})
    shards = params.shards.model_copy(update={"size": 16, "num_frames": 6, "num_workers": 1})
    params = params.model_copy(update={"dataset": dataset, "shards": shards})
    make_folder(root / "raw", 70, 60, 120, seed=1, num_train=20)
    clips, _ = read_folder(root / "raw", dataset)
    write_manifest(sorted(clips, key=lambda clip: clip.video_id), root / "manifest.parquet")
    write_shards(manifest_path=root / "manifest.parquet", out_dir=root / "shards", config=shards)
    searchable_model().save_pretrained(root / "model")
    export(model_dir=root / "model", shards=root / "shards", out_dir=root / "export", config=params.export)
    incoming = root / "incoming"
    make_folder(incoming / "same", 24, 60, 120, seed=2)
    make_folder(incoming / "brighter", 24, 190, 240, seed=3)
    make_folder(incoming / "silent", 12, 60, 120, seed=4, captions=False)
    make_folder(incoming / "few", 3, 60, 120, seed=5)
    (incoming / "empty" / "videos").mkdir(parents=True)
    (incoming / "broken").mkdir()
    (incoming / "broken" / "film.mp4").write_bytes(b"no film")
    make_folder(incoming / "table", 1, 60, 120, seed=6)
    (incoming / "table" / "captions.csv").write_text("film,words\nx,y\n", encoding="utf-8")
    return root, params


def run(world: World, out: str, *batches: str, incoming: str = "incoming") -> dict:
    root, params = world
    return drift(incoming_dir=root / incoming, model_dir=root / "model", export_dir=root / "export",
                 shards_dir=root / "shards", out_dir=root / out, params=params, batches=batches)


def of(result: dict, name: str) -> dict:
    return next(batch for batch in result["batches"] if batch["batch"] == name)
