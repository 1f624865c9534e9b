"""One batch: read it, compare it, measure search on it, name the causes, and decide."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hcmi.config import Params
from hcmi.dataset import NothingUsableError
from hcmi.drift.causes import (
    TRAIN_WITH,
    Cause,
    copies_of_known,
    copies_within,
    empty_captions,
    has_new_words,
    repeats,
    unknown_words,
    wrong_captions,
)
from hcmi.drift.compare import compare
from hcmi.drift.label_free_recall import Scores, estimate_recall, hits
from hcmi.drift.learned import Learned
from hcmi.drift.profile import MIN_CLIPS, unit
from hcmi.drift.queries import LOG, judge_queries
from hcmi.drift.recall_from_clips import Clips
from hcmi.drift.reference import Reference
from hcmi.drift.report import LONGEST_NAME, BatchReport
from hcmi.drift.sample import MAX_CLIPS, count_reasons, read_batch, unreadable
from hcmi.drift.severity import WITHOUT_WRONG, Severity, estimated, measure
from hcmi.drift.slices import NEW_WORDS, Slice, weak_slices
from hcmi.drift.verdict import MACHINE, NO_GALLERY, NO_TEST_CAPTIONS, TOO_FEW, UNREADABLE, decide
from hcmi.errors import DataError, MachineError, shown
from hcmi.types import Skip, path_text
from hcmi.video import MACHINE_REASONS, find_videos
from hcmi.wording import plural

SHOWN_LOST = 20


def judge(folder: Path, reference: Reference, params: Params, shards_dir: str | Path,
          learned: Learned | None = None) -> BatchReport:
    """Read, compare and judge one batch. Its random draws depend only on the seed and the batch's name.

    `learned`: what accepted batches allow.
    """
    report = BatchReport(shown(folder.name))
    generator = np.random.default_rng([params.drift.seed, zlib.crc32(os.fsencode(folder.name))])
    try:
        if (size := len(report.name.encode())) > LONGEST_NAME:
            raise DataError(f"{folder}: need a name of at most {LONGEST_NAME} bytes, which the report's files have "
                            f"too, got {size}. Rename the folder.")
        if (folder / LOG).is_file():
            if find_videos(folder):
                raise DataError(f"{folder}: need videos or {LOG}, got both. Move {LOG} to a folder of its own.")
            judge_queries(report, folder / LOG, reference, params.drift.false_alarm_rate, generator)
            return report
        report.sample, report.skipped, report.num_found, report.num_captions = read_batch(
            folder, reference.model, params, reference.precision, shards_dir, generator)
    except NothingUsableError as error:
        report.skipped, report.num_found = error.skipped, len(unreadable(error.skipped))
        report.trouble = str(error)         # of a folder without videos
    except DataError as error:
        report.trouble = str(error)
        return report
    except MachineError as error:
        report.reason, report.trouble = MACHINE, str(error)
        return report
    limit = params.shards.max_skip_fraction if report.sample is not None else 0.0       # nothing was read
    trouble = why_unreadable(unreadable(report.skipped), report.num_found, limit)
    if trouble is not None:
        report.reason, report.trouble = trouble
    if trouble is not None or report.sample is None:
        return report
    report.profile, scores = reference.profile_of(report.sample)
    conclude(report, scores, reference, params.drift.false_alarm_rate, generator, learned)
    return report


def why_unreadable(failed: list[Skip], num_found: int, limit: float) -> tuple[str, str] | None:
    """The reason of `cannot tell`, and a sentence for it: the machine's fault or the files'; None where few failed.

    All files were listed, but at most `MAX_CLIPS` of the clips were decoded, and stand for the others.
    """
    decoding = sum(skip.stage == "shards" for skip in failed)
    listed = num_found - (len(failed) - decoding)
    drawn = min(listed, MAX_CLIPS)
    expected = num_found - listed + decoding * listed / max(drawn, 1)
    if not failed or expected <= limit * num_found:
        return None
    busy = sum(skip.reason in MACHINE_REASONS for skip in failed) > len(failed) / 2
    about, of = ("", "") if drawn == listed or not decoding else ("About ", f" of {drawn} that were drawn at random")
    return MACHINE if busy else UNREADABLE, (
        f"{about}{expected:,.0f} of {plural(num_found, 'clip')} cannot be {'read in time' if busy else 'read'} "
        f"({count_reasons(failed)}{of}); at most {limit:.0%} may fail. The first: {failed[0].detail}")


def conclude(report: BatchReport, scores: Scores | None, reference: Reference, false_alarm_rate: float,
             generator: np.random.Generator, learned: Learned | None = None) -> None:
    """Fill in everything that follows from the batch's sample, profile and scores: the verdict last."""
    assert report.sample is not None, "need a batch that was read"
    assert report.profile is not None, "need a batch that was read"
    smallest = min(len(report.sample), len(reference.sample))
    if smallest < MIN_CLIPS:
        who = "The reference" if len(reference.sample) == smallest < len(report.sample) else "The batch"
        report.reason, report.trouble = TOO_FEW, (f"{who} has {plural(smallest, 'clip')}; a verdict needs "
                                                  f"{MIN_CLIPS}.")
        return
    report.shifts = (learned or Learned()).without(report.name).widen(
        compare(reference.profile, report.profile, false_alarm_rate, generator))
    wrong = _measure(report, scores, reference)
    report.causes = [_with_recall(cause, report.slices) for cause in (wrong, *_other_causes(report, reference))
                     if cause is not None]
    report.verdict = decide(any(shift.drifted for shift in report.shifts), report.severity, report.causes)
    report.reason = ""


def _measure(report: BatchReport, batch: Scores | None, reference: Reference) -> Cause | None:
    """Fill in R@1: each caption's own clip competes with the gallery. Returns the captions that are probably wrong.

    The severity leaves these out, because a wrong caption does not mean that search is worse.
    """
    known, sample = reference.scores, report.sample
    assert sample is not None
    assert report.profile is not None
    if known is None or len(known) < MIN_CLIPS:
        report.unmeasured = NO_GALLERY if reference.gallery is None else NO_TEST_CAPTIONS
        return None
    if batch is None or len(batch) < MIN_CLIPS:
        report.severity = _estimate(report, reference)
        return None
    report.gallery = batch.gallery_NG.shape[1]
    groups, known_groups = report.profile.units[sample.captioned], reference.profile.units[reference.sample.captioned]
    report.measured = report.severity = measure(batch, known, groups, known_groups)
    report.estimate = estimate_recall(batch, reference.temperature)
    wrong, exchanged = wrong_captions(batch, sample.captioned, sample.captions, reference.temperature)
    right = np.setdiff1d(np.arange(len(batch)), exchanged)
    if wrong is not None and len(right) >= MIN_CLIPS:
        report.severity = measure(batch[right], known, groups[right], known_groups, WITHOUT_WRONG)
    report.lost = _lost(report, batch, right)
    rows = sample.captioned[right]
    captions = [sample.captions[row] for row in right]
    report.slices = weak_slices(hits(batch)[right], captions, [sample.clips[row].tags for row in rows],
                                unit(sample.videos.video_BD.numpy())[rows],
                                {NEW_WORDS: has_new_words(captions, reference.words)})
    return wrong


def _with_recall(cause: Cause, slices: Sequence[Slice]) -> Cause:
    """Unknown words matter most where search finds their clips less."""
    weak = [some for some in slices if some.name == NEW_WORDS]
    if cause.name != "unknown words" or not weak:
        return cause
    return replace(cause, sentence=f"{cause.sentence}. R@1 of these is {weak[0].recall:.0f} %, and {weak[0].rest:.0f} "
                                   "% of the others",
                   advice=TRAIN_WITH)


def _estimate(report: BatchReport, reference: Reference) -> Severity | None:
    """R@1 of a batch that has no captions, or too few."""
    if reference.gallery is None or reference.from_clips is None:
        return None
    assert report.sample is not None
    assert report.profile is not None
    clips = Clips.of(report.sample.videos, reference.gallery, report.profile.units)
    return estimated(reference.from_clips.estimate(clips), reference.from_clips.reference)


def _lost(report: BatchReport, batch: Scores, right: np.ndarray) -> list[dict]:
    """Those of the captions `right` whose own clip is farthest behind the best of the gallery, worst first."""
    assert report.sample is not None
    own_N, gallery_NG = np.diagonal(batch.clips_NN)[right], batch.gallery_NG[right]
    behind_N = gallery_NG.max(1) - own_N
    lost = []
    for place in np.argsort(-behind_N, kind="stable")[:SHOWN_LOST].tolist():
        if behind_N[place] > 0:
            clip = report.sample.clips[int(report.sample.captioned[right[place]])]
            lost.append({"video_id": clip.video_id, "path": path_text(clip.path),
                         "caption": report.sample.captions[right[place]],
                         "rank": int(1 + (gallery_NG[place] > own_N[place]).sum()),
                         "won_instead": int(gallery_NG[place].argmax())})
    return lost


def _other_causes(report: BatchReport, reference: Reference) -> list[Cause | None]:
    sample, profile = report.sample, report.profile
    assert sample is not None
    assert profile is not None
    vectors_VD, known_VD = (unit(some.embeddings["video_embedding"]) for some in (profile, reference.profile))
    tested, frames = reference.sample.clips[:len(sample)], reference.sample.middle_frames[:len(sample)]
    usual = len(repeats(tested, known_VD[:len(tested)], frames, reference.copy)) / len(tested)
    near_V, known_near_V = (some.columns["nearest_known"].to_numpy() if "nearest_known" in some.columns else
                            np.zeros(len(some)) for some in (profile, reference.profile))
    return [
        copies_of_known(sample.clips, near_V, reference.files, reference.copy,
                             float((known_near_V > reference.copy).mean())),
        copies_within(sample.clips, vectors_VD, sample.middle_frames, reference.copy, usual),
        unknown_words(sample.captioned, sample.captions, reference.words, reference.usual_unknown),
        empty_captions(report.skipped, report.num_captions)]
