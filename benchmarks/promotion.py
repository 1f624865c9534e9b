"""The gate before what is served, on planted models: how often a worse one is promoted, and a better one refused.

The trained model is the better one; the worse ones are copies whose text side has more and more noise in its weights.
Their videos' tokens therefore stay those of the export, and only captions are encoded again. Each pair is compared as
`hcmi promote` does on the test set, with one caption of each clip, in both directions: `worse_promoted` of `tries`
with the worse model as the new one, `better_refused` with the better one. `smallest_loss` and `largest_loss`: points of
R@1 that the worse models lose.

    python benchmarks/promotion.py [--quick] [--model DIR] [--export DIR]
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from common import shipped, table, write_result

from hcmi.evaluate import paired_difference, ranks
from hcmi.index import TokenStore
from hcmi.model import HcmiModel, encode_texts, load_retriever, score
from hcmi.promote import Difference, decide

NOISE = (0.35, 1.0)     # of the first and the last copy, in standard deviations of each matrix
MARGIN = 1.0            # promote.margin
SAMPLES = 1000


def spoil(model: HcmiModel, noise: float, seed: int) -> HcmiModel:
    """The model with noise in the matrices of its text tower."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "text" in name and weight.dim() > 1:
                weight.add_(noise * weight.std() * torch.randn(weight.shape, generator=generator))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four models instead of twenty")
    parser.add_argument("--model", help="default: models/hcmi, made with the shipped parameters")
    parser.add_argument("--export", help="default: export")
    options = parser.parse_args()
    options.model = options.model or shipped("models/hcmi")
    reference = Path(options.export or shipped("export"), "reference")
    videos = TokenStore(reference / "embeddings").tokens(slice(None))
    queries = pq.read_table(reference / "queries.parquet").to_pandas().drop_duplicates("video_row")
    own = queries["video_row"].to_numpy()

    @torch.inference_mode()
    def hits(model: HcmiModel) -> np.ndarray:
        sims_QV = model.combine(score(model, encode_texts(model, queries["caption"].tolist()), videos)).numpy()
        return 100 * ranks(sims_QV, own).hits_at(1)

    def passes(served: np.ndarray, new: np.ndarray) -> bool:
        low, high = paired_difference(served, new, np.random.default_rng(0), SAMPLES)["ci95"]
        return decide(Difference("test set", served.mean(), new.mean(), low, high, len(new)), None, MARGIN)[0]

    good = hits(load_retriever(options.model))
    rows = []
    for number, noise in enumerate(np.linspace(*NOISE, 4 if options.quick else 20)):
        bad = hits(spoil(load_retriever(options.model), float(noise), number))
        rows.append((f"{noise:.2f}", float(good.mean() - bad.mean()), passes(good, bad), passes(bad, good)))
        print(table(["noise", "points lost", "worse promoted", "better promoted"], rows[-1:]), flush=True)
    losses = [row[1] for row in rows]
    figures = {"tries": len(rows), "worse_promoted": sum(row[2] for row in rows),
               "better_refused": sum(not row[3] for row in rows), "smallest_loss": min(losses),
               "largest_loss": max(losses), "queries": len(good)}
    print(table(["noise", "points lost", "worse promoted", "better promoted"], [
        (*row[:2], *("yes" if value else "no" for value in row[2:])) for row in rows]))
    print(write_result("promotion", figures, options.quick))


if __name__ == "__main__":
    main()
