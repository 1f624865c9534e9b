"""The picture of a training run has a line for every figure that the run has."""

import pytest

from hcmi.train import curves
from hcmi.train.curves import PANELS, draw_curves


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures: list = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, *_, **__: figures.append(figure))
    return figures


def test_curves_have_a_line_for_each_figure_when_a_run_has_all(drawn, tmp_path):
    names = [name for panel in PANELS for name in panel.names]
    history = [{"epoch": epoch, **dict.fromkeys(names, 1.0 + epoch)} for epoch in range(2)]
    draw_curves(history, 1, tmp_path / "training.png")
    for axes, panel in zip(drawn[0].axes, PANELS, strict=True):
        lines = {line.get_label() for line in axes.lines}
        assert set(panel.labels) <= lines, f"{panel.title}: no line for {set(panel.labels) - lines}"
        colours = [line.get_color() for line in axes.lines if line.get_label() in panel.labels]
        assert len(set(colours)) == len(panel.labels), f"{panel.title}: two lines of one colour"
