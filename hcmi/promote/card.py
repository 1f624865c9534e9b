"""The model card of a release: what a model hub shows about it, in the format of Hugging Face."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hcmi.model import is_name

TAGS = ["text-video-retrieval", "video-search", "hcmi"]
DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}
KS = (1, 5, 10)

BODY = """\
# Text-video retrieval with HCMI: release {version}

The model finds the videos that a sentence describes. Its head is `{head}`; its towers are {towers}.

## Figures

{videos} clips and {texts} captions of the split `{split}` of `{dataset}`.
Recall in per cent; R@1 with its 95 % interval.

{table}

## Use

```sh
hf download OWNER/NAME --local-dir models/hcmi-{version}
hcmi search "a dog jumps into water" --videos FOLDER_OF_VIDEOS --model models/hcmi-{version}
```

```python
from hcmi.model import load_retriever

model = load_retriever("models/hcmi-{version}")
```

## Where it comes from

| | |
|---|---|
| made | {made} |
| model | `{fingerprint}` |
| data | `{shards_sha256}` (sha256 of the list of shards) |
| test split | `{split_sha256}` (sha256 of its ids and captions) |
| code | hcmi {hcmi}, git revision {revision} |
| why it was released | {why} |
"""


def model_card(version: str, record: dict[str, Any], report: dict[str, Any]) -> str:
    """README.md of a model folder. `record`: that of release.json; `report`: that of metrics/evaluate.json."""
    protocol, raw = report["protocol"], report["raw"]
    base = _on_hub(protocol["backbone"])
    results = [EvalResult(task_type="Retrieval", dataset_type=protocol["dataset"], dataset_name=protocol["dataset"],
                          dataset_split=protocol["split"], metric_type=f"recall_at_{k}",
                          metric_name=f"R@{k}, {said}", metric_value=raw[name][f"R@{k}"])
               for name, said in DIRECTIONS.items() for k in KS]
    data = ModelCardData(library_name="hcmi", tags=TAGS, base_model=base, eval_results=results,
                         model_name=f"hcmi {version}",
                         data_sha256=record["data"]["shards_sha256"])
    body = BODY.format(
        version=version, head=protocol["head"], made=record["made"], why=record["why"].replace("|", "\\|"),
        towers=_towers(protocol["backbone"], base),
        videos=protocol["num_videos"], texts=protocol["num_texts"], split=protocol["split"],
        dataset=protocol["dataset"], table=_table(raw), fingerprint=record["model"]["fingerprint"],
        hcmi=record["code"]["hcmi"], revision=_revision(record["code"]), **record["data"])
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def _on_hub(backbone: str) -> str | None:
    """The name of the checkpoint on the hub. A folder of this machine is of no use to a reader of the card."""
    return backbone if is_name(backbone) else None


def _towers(backbone: str, base: str | None) -> str:
    if backbone == "scratch":
        return "trained from scratch"
    return f"those of `{base}`" if base else "those of a checkpoint that is not on the hub"


def _table(raw: dict[str, Any]) -> str:
    lines = ["| | R@1 | R@5 | R@10 | median rank |", "|---|---|---|---|---|"]
    for name, said in DIRECTIONS.items():
        low, high = raw[name]["R@1_ci95"]
        lines.append(f"| {said} | {raw[name]['R@1']:.1f} [{low:.1f}, {high:.1f}] | {raw[name]['R@5']:.1f} | "
                     f"{raw[name]['R@10']:.1f} | {raw[name]['MdR']:g} |")
    return "\n".join(lines)


def _revision(code: dict[str, Any]) -> str:
    if code["revision"] is None:
        return "unknown"
    return f"`{code['revision']}`{', with changes that were not committed' if code['changed'] else ''}"
