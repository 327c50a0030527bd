"""PSNR, SSIM, Fréchet distance, charts and sheets."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from drawing import blurred, drawn
from PIL import Image

from muse_models.evaluation import charts, sheets, sweeps
from muse_models.evaluation.frechet import frechet_distance
from muse_models.evaluation.reconstruction import psnr, ssim
from muse_models.evaluation.verdicts import HEADLINE
from muse_models.reference.sampler import Settings


def test_psnr_of_a_known_error():
    one = np.full((2, 32, 32, 3), 100, np.uint8)
    other = one.copy()
    other[1] += 10
    assert psnr(one, other)[0] == pytest.approx(99)
    assert psnr(one, other)[1] == pytest.approx(10 * np.log10(255**2 / 100), abs=1e-4)


def test_ssim_is_one_for_equal_pictures_and_falls_with_damage():
    picture = drawn([("circle", "red", 20, 20, 80)], "blue")[None]
    soft, softer = blurred(picture[0], 2)[None], blurred(picture[0], 30)[None]
    assert ssim(picture, picture)[0] == pytest.approx(1, abs=1e-5)
    assert 1 > ssim(picture, soft)[0] > ssim(picture, softer)[0] > 0


def test_ssim_of_two_even_pictures_is_the_luminance_term():
    one, other = np.full((1, 16, 16, 3), 100, np.uint8), np.full((1, 16, 16, 3), 150, np.uint8)
    a, b = 100 / 255, 150 / 255
    assert ssim(one, other)[0] == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), abs=1e-3)


def test_frechet_distance_of_known_normal_distributions():
    rng = np.random.default_rng(1)
    one = rng.normal(size=(200_000, 3))
    other = rng.normal(size=(200_000, 3)) * np.array([1, 2, 3]) + np.array([0, 0, 2])
    # |mean|² + Σ (σ1 − σ2)²
    assert frechet_distance(one, other) == pytest.approx(4 + 0 + 1 + 4, rel=0.02)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_does_not_depend_on_the_axes():
    rng = np.random.default_rng(2)
    one, other = rng.normal(size=(500, 5)), rng.normal(size=(400, 5)) @ rng.normal(size=(5, 5)) + 1
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    assert frechet_distance(one @ turn, other @ turn) == pytest.approx(frechet_distance(one, other), rel=1e-6)


def test_a_chart_is_an_image_with_every_point(tmp_path):
    path = tmp_path / "chart.svg"
    charts.line_chart(path, "a < b", (1, 2.5, 4), [charts.Line("x", (0, 50, 120)), charts.Line("y", (1, 2, 3))], 100, 2.5)
    root = ElementTree.parse(path).getroot()
    space = "{http://www.w3.org/2000/svg}"
    circles = root.findall(f"{space}circle")
    assert len(circles) == 6
    heights = [float(circle.get("cy")) for circle in circles[:3]]
    assert heights[0] > heights[1] > heights[2] >= 0
    assert {"a < b", "x", "y", "2.5"} <= {text.text for text in root.findall(f"{space}text")}


def test_a_sheet_shows_pictures_untouched_in_their_places(tmp_path):
    pictures = [drawn([], colour) for colour in ("red", "green", "blue")]
    sheets.sheet(tmp_path / "sheet.webp", pictures, ["one", "two", "three"], 2, right=[True, False, True])
    shown = np.asarray(Image.open(tmp_path / "sheet.webp").convert("RGB")).astype(int)
    assert np.abs(shown[60, 60] - pictures[0][0, 0]).max() < 12
    assert np.abs(shown[60, 60 + 134] - pictures[1][0, 0]).max() < 12


SETTINGS = Settings(8, 2.0, "linear", 1.0, 0, 4.5, "cosine", "confidence")


def test_a_sweep_changes_one_setting_and_measures_the_default_once():
    asked = []

    def measure(settings: Settings) -> tuple[dict[str, float], float]:
        asked.append(settings)
        return dict.fromkeys(HEADLINE, 0.5), 1.0

    found = sweeps.sweep("base", SETTINGS, {"steps": (4, 8), "guidance": (0.0, 5.0)}, 100, measure)
    assert [[point.value for point in one.points] for one in found] == [[4, 8], [0, 2, 5]]
    assert len(asked) == len(set(asked)) == 4
    assert all(sum(getattr(one, name) != getattr(SETTINGS, name) for name in ("steps", "guidance")) <= 1 for one in asked)


def test_the_best_point_is_the_closest_among_those_that_are_as_good():
    def point(value: float, mean: float, frechet: float) -> sweeps.Point:
        return sweeps.Point(value, dict.fromkeys(HEADLINE, mean), frechet)

    points = (point(1, 0.50, 0.1), point(2, 0.79, 3.0), point(3, 0.80, 9.0))
    assert sweeps.Sweep("base", "steps", 1, points, 100).best.value == 2
    assert sweeps.Sweep("base", "steps", 1, points, 10**6).best.value == 3
