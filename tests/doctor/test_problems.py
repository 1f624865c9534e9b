"""What would end a run, one at a time."""

import pytest

from hcmi.doctor import doctor
from hcmi.doctor.problems import find_problems, training_memory_bytes

REPORT = {"machine": {"disk_free_gb": 10.0, "memory_free_gb": 4.0}, "memory_needed_gb": 1.0, "captions": {},
          "projected": {"failure_rate": 0.0, "shards_mb": 100.0}}


def test_nothing_is_found_when_all_is_well(params):
    assert find_problems(REPORT, ["a.mp4", "ünï/b.mp4"], params) == []


@pytest.mark.parametrize(("change", "message"), [
    ({"projected": {"failure_rate": 0.2, "shards_mb": 0.0}}, "videos: need at most 10% that cannot be decoded, got"),
    ({"projected": {"failure_rate": 0.0, "shards_mb": 20_000.0}}, "disk: need 20.0 GB for the shards, got 10.0 GB."),
    ({"memory_needed_gb": 5.0}, "memory: need 5.0 GB for batches, got 4.0 GB. Lower train.batch_size"),
    ({"captions": None}, "captions: need captions.csv to train and evaluate, got none. Without it")])
def test_problem_is_found_when_the_report_has(params, change, message):
    problem, = find_problems({**REPORT, **change}, [], params)
    assert problem.startswith(message)


def test_problem_is_found_when_a_name_is_no_text(params):
    problem, = find_problems(REPORT, ["a.mp4", "caf\udce9.mp4"], params)
    assert problem.startswith(r"names: need names in UTF-8, got 1 others, such as caf\xe9.mp4. Rename them")


@pytest.mark.parametrize(("section", "change", "message"), [
    ("train", {"device": "cuda:99"}, "device: need a CUDA GPU for 'cuda:99', got"),
    ("shards", {"size": 65}, "shards.size: need a multiple of model.scratch.patch=8, got 65. Change one of them.")])
def test_problem_is_found_when_the_parameters_have(params, section, change, message):
    wrong = params.model_copy(update={section: getattr(params, section).model_copy(update=change)})
    problem, = find_problems(REPORT, [], wrong)
    assert problem.startswith(message)


def test_memory_is_that_of_the_batches_when_worked_by_hand(params):
    """Batches of 64 clips of 12 frames of 64 pixels: four in the loader as bytes, one as floats of four bytes."""
    assert training_memory_bytes(params) == 64 * 12 * 64 * 64 * 3 * (4 + 4)


def test_doctor_names_what_the_machine_or_the_parameters_lack(folder, params):
    wrong = params.model_copy(update={
        "train": params.train.model_copy(update={"batch_size": 10**9}),
        "model": params.model.model_copy(update={"num_frames": params.shards.num_frames + 1})})
    problems = " ".join(doctor(folder, wrong)["problems"])
    assert "memory: need " in problems
    assert f"model.num_frames: need at most shards.num_frames={params.shards.num_frames}, got" in problems
