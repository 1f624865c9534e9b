"""Which split each video of a list would get, without a look into the files."""

from collections import Counter
from collections.abc import Mapping

from hcmi.config import DatasetConfig
from hcmi.dataset.build_clips import place_of


def expected_splits(given: Mapping[str, str | None], config: DatasetConfig) -> dict[str, str]:
    """Name of each video -> its split, by the rule of `build_clips` for files of different bytes.

    `given`: the split that the rows give a video, or None. Files of equal bytes get one split together, which is known
    only after reading them.
    """
    places = {name: place_of(name, config.seed) for name, split in given.items() if split is None}
    test, val = config.test_fraction, config.test_fraction + config.val_fraction
    found = {name: split or ("test" if places[name] < test else "val" if places[name] < val else "train")
             for name, split in given.items()}
    wanted = {"train": 1 - val, "test": config.test_fraction, "val": config.val_fraction}
    for split, fraction in wanted.items():
        counts = Counter(found.values())
        donors = [name for name in places if counts[found[name]] > 1]
        if fraction > 0 and not counts[split] and donors:
            found[min(donors, key=lambda name: places[name])] = split
    return found
