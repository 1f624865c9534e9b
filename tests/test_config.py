"""params.yaml as it is shipped, and what is said about one that is wrong."""

import re
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from hcmi.cli import main
from hcmi.config import DatasetConfig, ModelConfig, load_overrides, load_params
from hcmi.dataset.stage import DATASETS
from hcmi.errors import ConfigError
from hcmi.model.heads import HEADS


@pytest.fixture
def shipped(repo_root) -> str:
    return (repo_root / "params.yaml").read_text(encoding="utf-8")


def problem(text: str | bytes, folder: Path) -> str:
    """The message for a file of this text, less its own path."""
    path = folder / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_params(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def edited(text: str, key: str, line: str) -> str:
    """params.yaml with the line of a dotted key replaced by another of the same depth; an empty one removes it."""
    lines, path = text.splitlines(), []
    for number, old in enumerate(lines):
        if not (name := re.match(r"( *)([a-z_]+):", old)):
            continue
        path = [*path[:len(name[1]) // 2], name[2]]
        if ".".join(path) == key:
            lines[number] = name[1] + line if line else ""
            return "\n".join(lines)
    raise AssertionError(f"params.yaml has no key {key}")


def test_shipped_parameters_are_read_when_untouched(repo_root):
    params = load_params(repo_root / "params.yaml")
    assert params.model.head == "hcmi"
    assert isinstance(params.train.lr, float)
    assert params.train.loss.denoise in ("off", "positive", "mask")     # a word, not False


def test_config_knows_the_heads_that_are_built():
    assert set(get_args(ModelConfig.model_fields["head"].annotation)) == set(HEADS)


def test_config_knows_the_data_sets_that_are_read():
    assert set(get_args(DatasetConfig.model_fields["name"].annotation)) == set(DATASETS)


def test_load_reads_yaml_1_2_when_numbers_have_exponents_and_words_look_like_answers(shipped, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(edited(edited(shipped, "train.lr", "lr: 2e-3"), "train.loss.denoise", "denoise: off"))
    params = load_params(path)
    assert params.train.lr == 2e-3
    assert params.train.loss.denoise == "off"


@pytest.mark.parametrize(("key", "line", "message"), [
    ("train.max_grad_norm", "max_grad_norn: 1.0",
     "need only known keys, got train.max_grad_norn=1.0. Known keys are in hcmi/config.py."),
    ("train.max_grad_norm", "",
     "need the key train.max_grad_norm, got none. Add it; hcmi/config.py says what it means."),
    ("train.max_grad_norm", "max_grad_norm: 0", "train.max_grad_norm: need greater than 0, got 0. Correct the value."),
    ("train.max_grad_norm", "max_grad_norm: .inf",
     "train.max_grad_norm: need a finite number, got inf. Correct the value."),
    ("train.max_grad_norm", "max_grad_norm: '1.0'",
     "train.max_grad_norm: need a valid number, got '1.0'. Correct the value."),
    ("train.batch_size", "batch_size: yes", "train.batch_size: need a valid integer, got 'yes'. Correct the value."),
    ("train.batch_size", "batch_size: true", "train.batch_size: need a valid integer, got True. Correct the value."),
    ("train.batch_size", "batch_size: 12.5", "train.batch_size: need a valid integer, got 12.5. Correct the value."),
    ("train.seed", "seed: 1\n  seed: 2", "need YAML in UTF-8, got: while constructing a mapping"),
    ("train.loss.denoise", "denoise: false",
     "train.loss.denoise: need 'positive', 'mask' or 'off', got False. Correct the value."),
    ("train.captions_per_clip", "captions_per_clip: 0",
     "train.captions_per_clip: need greater than 0, got 0. Correct the value."),
    ("train.loss.level_weights", "level_weights: {frame_word: 0, clip_phrase: 0, video_sentence: 0}",
     "train.loss.level_weights: need at least one level with a weight above 0, got none. Correct the value."),
    ("drift.false_alarm_rate", "false_alarm_rate: 0.000001",        # it asked for 32.5 GiB
     "drift.false_alarm_rate: need greater than or equal to 0.0001, got 1e-06. Correct the value."),
    ("model.head", "head: clip4clip", "model.head: need '"),
    ("model.num_clips", "num_clips: 99", "model: num_clips: need at most num_frames="),
    ("model.num_phrases", "num_phrases: 99", "model: num_phrases: need at most num_words="),
    ("model.scratch.heads", "heads: 7", "model.scratch: heads: need a divisor of width="),
    ("model.backbone", "backbone: ''", "model.backbone: need at least 1 character, got ''. Correct the value."),
    ("model.scratch", "scratch: small\n  other:", "need only known keys, got model.other="),
])
def test_load_names_the_key_when_a_value_is_wrong(shipped, tmp_path, key, line, message):
    assert problem(edited(shipped, key, line), tmp_path).startswith(message)


@pytest.mark.parametrize(("text", "message"), [
    ("", "need a mapping of sections, got NoneType. Restore it from git."),
    ("- 1\n- 2\n", "need a mapping of sections, got list. Restore it from git."),
    ("a: [1, 2\n", "need YAML in UTF-8, got: while parsing a flow sequence"),
    (b"\xff\xfe\x00a", "need YAML in UTF-8, got: "),
    ("{}", "need the key dataset, got none."),
])
def test_load_says_what_it_needs_when_the_file_is_no_parameter_file(tmp_path, text, message):
    assert problem(text, tmp_path).startswith(message)


def test_load_says_where_to_run_when_there_is_no_file(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_params(tmp_path / "params.yaml")
    assert str(caught.value) == (f"{tmp_path / 'params.yaml'}: need a parameter file, found none. "
                                 f"Run from the project's folder; `hcmi init DIR` makes one.")


def test_sections_cannot_be_changed_when_parsed(repo_root):
    with pytest.raises(ValueError, match="frozen"):
        load_params(repo_root / "params.yaml").train.epochs = 3


def test_denoising_by_text_needs_two_captions_when_it_is_on(shipped, tmp_path):
    one = edited(shipped, "train.captions_per_clip", "captions_per_clip: 1")
    path = tmp_path / "params.yaml"
    path.write_text(one)
    assert load_params(path).train.captions_per_clip == 1
    assert "need captions_per_clip of 2 or more for loss.denoise_by text, got 1." in problem(
        edited(one, "train.loss.denoise", "denoise: mask"), tmp_path)


# presets

def test_each_preset_fits_the_shipped_parameters(repo_root):
    presets = sorted((repo_root / "presets").glob("*.yaml"))
    assert {path.stem for path in presets} == {"msrvtt", "msvd", "lsmdc", "didemo", "activitynet", "vit-b-32",
                                               "vit-b-16", "vit-l-14", "laptop"}
    for path in presets:
        assert load_overrides([path], repo_root / "params.yaml"), path


def test_later_overrides_win_and_are_checked_together(repo_root, tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("train: {lr: 1e-4, loss: {margin: 0.3}}\nmodel: {num_frames: 8}\n")
    two.write_text("train: {lr: 2e-4}\n")
    changes = load_overrides([one, two], repo_root / "params.yaml")
    assert changes == {"train.lr": 2e-4, "train.loss.margin": 0.3, "model.num_frames": 8}
    two.write_text("model: {num_clips: 9}\n")
    with pytest.raises(ConfigError, match=r"two\.yaml: model: num_clips: need at most num_frames=8, got 9"):
        load_overrides([one, two], repo_root / "params.yaml")
    two.write_text("train: {rate: 1}\n")
    with pytest.raises(ConfigError, match=r"two\.yaml: need only known keys, got train\.rate=1"):
        load_overrides([one, two], repo_root / "params.yaml")
    two.write_text("train: {lr: {value: 1}}\n")
    with pytest.raises(ConfigError, match=r"two\.yaml: train\.lr\.value: need a known key, got one below lr"):
        load_overrides([one, two], repo_root / "params.yaml")
    with pytest.raises(ConfigError, match=r"three\.yaml: need a parameter file, found none"):
        load_overrides([tmp_path / "three.yaml"], repo_root / "params.yaml")


def test_overrides_are_printed_as_options_of_dvc(repo_root, tmp_path):
    run = CliRunner().invoke(main, ["overrides", str(repo_root / "presets/vit-b-32.yaml"),
                                    "--params", str(repo_root / "params.yaml")])
    assert run.output.startswith("-S model.backbone=openai/clip-vit-base-patch32 -S model.coarse_gradient=1.0 ")
    assert "-S train.backbone_lr=1e-07" in run.output
    (tmp_path / "spaces.yaml").write_text("dataset: {path: my videos}\n")
    run = CliRunner().invoke(main, ["overrides", str(tmp_path / "spaces.yaml"),
                                    "--params", str(repo_root / "params.yaml")])
    assert run.exit_code == 1
    assert "dataset.path: need a value without spaces, got 'my videos'" in run.output
