"""Searching a folder with a checkpoint, compared with a bare loop of the same decoder and towers.

The checkpoint has the shape of CLIP ViT-B/32 and random weights; this script makes it. Both sides are processes that
start from nothing: `hcmi search QUERY --videos FOLDER --model CHECKPOINT` with an empty cache, and a loop that decodes
12 frames of each file, runs `transformers`' CLIP on them and prints the file that ranks first. They run in turns.

- `ratio`: seconds of the search over those of the loop, the median of the pairs; `ratio_of_pairs`: the least and the
  largest pair
- `cpu_ratio`: the same of processor time, that of all child processes included, which other work disturbs less
- `search_s`, `loop_s`, `search_cpu_s`, `loop_cpu_s`: medians; `again_s`: the search with its index kept, which decodes
  nothing
- `same_first`: 1 where both have the same first answer

    python benchmarks/zero_shot.py [--quick] [--videos FOLDER] [--files N] [--pairs N]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import shipped, table, write_result

from hcmi.video import find_videos

QUERY = "a man rides a horse"
LOOP = """
import sys
import torch
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
from hcmi.search.folder_index import videos_by_name
from hcmi.video import DecodeJob, DecoderPool
from hcmi.errors import DecodeError
from pathlib import Path
videos, checkpoint, query = sys.argv[1:]
towers = CLIPModel.from_pretrained(checkpoint).eval()
images = AutoImageProcessor.from_pretrained(checkpoint, backend='pil')
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.image_mean, images.image_std))
found = {}
jobs = [DecodeJob(None, str(path), 12, 224) for path in videos_by_name(Path(videos)).values()]
with torch.inference_mode(), DecoderPool(0, 20.0) as pool:
    for job, clip in pool.map(jobs):
        if not isinstance(clip, DecodeError):
            pixels = (torch.from_numpy(clip.frames).permute(0, 3, 1, 2) / 255 - mean) / std
            frames = towers.get_image_features(pixel_values=pixels).pooler_output
            found[job.path] = torch.nn.functional.normalize(frames, dim=1).mean(0)
    text = towers.get_text_features(**tokenizer([query], return_tensors='pt')).pooler_output[0]
print(max(found, key=lambda path: float(torch.nn.functional.cosine_similarity(found[path], text, dim=0))))
"""


def save_checkpoint(folder: Path) -> None:
    """A CLIP of ViT-B/32's shape with random weights, in the files that the hub has.

    The tokenizer spells every word in single bytes; a query has some tokens more than with CLIP's own.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: at for at, token in enumerate(tokens)}, merges=[], model_max_length=77)
    config = CLIPConfig()
    config.text_config.bos_token_id, config.text_config.eos_token_id = len(tokens) - 2, len(tokens) - 1
    for part in (CLIPModel(config), tokenizer, CLIPImageProcessorPil()):
        part.save_pretrained(folder)


def timed(command: list[str], cache: Path) -> tuple[float, float, str]:
    """Seconds of a command, processor time of it and its children, and what it prints."""
    started, before = time.perf_counter(), os.times()
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          env={**os.environ, "HCMI_CACHE": str(cache)})
    took_s, after = time.perf_counter() - started, os.times()
    return took_s, sum(after[2:4]) - sum(before[2:4]), done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pair, and 8 files")
    parser.add_argument("--videos", type=Path, help="default: those of Scenes")
    parser.add_argument("--files", type=int, default=66, help="at most; the first by name")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root, videos = Path(place), Path(place) / "videos"
        save_checkpoint(root / "clip")
        videos.mkdir()
        found = find_videos((options.videos or Path(shipped("data/generated"))).resolve())
        for path in sorted(found)[:8 if options.quick else options.files]:
            (videos / path.name).symlink_to(path)
        search = [sys.executable, "-m", "hcmi", "search", QUERY, "--videos", str(videos), "--model",
                  str(root / "clip"), "--json"]
        loop = [sys.executable, "-c", LOOP, str(videos), str(root / "clip"), QUERY]
        pairs: list[dict[str, list[float]]] = []        # seconds, and those of the processors
        same = True
        for pair in range(1 if options.quick else options.pairs):
            pairs.append({})
            for name in ("loop", "search") if pair % 2 else ("search", "loop"):
                *pairs[-1][name], text = timed(search if name == "search" else loop, root / f"cache-{pair}")
                if name == "search":
                    first = json.loads(text)[0]["path"]
                else:
                    looped = text.strip()
            same = same and Path(first).name == Path(looped).name
        again_s, *_ = timed(search, root / "cache-0")

    def median(name: str, which: int) -> float:
        return statistics.median(pair[name][which] for pair in pairs)

    ratios, cpu_ratios = ([pair["search"][which] / pair["loop"][which] for pair in pairs] for which in (0, 1))
    figures = {"pairs": len(pairs), "ratio": statistics.median(ratios), "ratio_of_pairs": (min(ratios), max(ratios)),
               "cpu_ratio": statistics.median(cpu_ratios), "search_s": median("search", 0), "loop_s": median("loop", 0),
               "search_cpu_s": median("search", 1), "loop_cpu_s": median("loop", 1), "again_s": again_s,
               "same_first": int(same)}
    print(table(["figure", "value"], figures.items()))
    print(write_result("zero_shot", figures, options.quick))


if __name__ == "__main__":
    main()
