"""What is seen on the frame, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raylens.core.types import Location, Region
from raylens.realtime.overlay import GREEN, RED, Overlay, Typesetter
from raylens.realtime.overlay.colors import DARK_RED, Color, contrast

from .toy_fonts import write_font

BOX = Region(0.25, 0.25, 0.75, 0.75)
GROUNDS = [0, 60, 128, 200, 255]
SIZES = [(240, 320), (480, 640), (720, 1280), (2160, 3840), (640, 360)]


def frame(level: int | Color = 128, height: int = 120, width: int = 160) -> Any:
    return np.full((height, width, 3), level, np.uint8)


def with_boxes(pixels: Any, *boxes: Region, opacity: float = 1.0, **labels: Any) -> Any:
    overlay = Overlay(pixels, opacity, 1.0)
    overlay.boxes(boxes, **labels)
    return overlay.render()


def with_points(pixels: Any, *points: Location, opacity: float = 1.0, **labels: Any) -> Any:
    overlay = Overlay(pixels, opacity, 1.0)
    overlay.points(points, **labels)
    return overlay.render()


def with_text(pixels: Any, text: str, opacity: float = 1.0, scale: float = 1.0) -> Any:
    overlay = Overlay(pixels, opacity, scale)
    overlay.text(text)
    return overlay.render()


def with_query(pixels: Any, question: str, answer: str, scale: float = 1.0) -> Any:
    overlay = Overlay(pixels, 1.0, scale)
    overlay.query(question, answer)
    return overlay.render()


def is_color(pixels: Any, color: Color) -> Any:
    return (pixels == color).all(axis=2)


def as_color(pixel: Any) -> Color:
    red, green, blue = map(int, pixel)
    return red, green, blue


def lightest_and_darkest(colors: Any) -> tuple[Color, Color]:
    """Return the lightest and the darkest of some colors (N, 3)."""
    brightness = colors.astype(int).sum(axis=1)
    return as_color(colors[brightness.argmax()]), as_color(colors[brightness.argmin()])


def edges(mask: Any) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the pixels in a mask, ends not included."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def rows_with_text(bar: Any) -> int:
    """Count lines of text in a bar: groups of rows with bright pixels."""
    bright = (bar > 150).all(axis=2).any(axis=1)
    return int(np.count_nonzero(np.diff(np.concatenate(([0], bright.astype(int)))) == 1))


def bar_height(drawn: Any, ground: Any) -> int:
    return int((drawn != ground).any(axis=(1, 2)).sum())


def count_labels(drawn: Any) -> int:
    """Count the whole labels "#8" in a picture of 320×240 pixels."""
    picture = frame(128, 240, 320)
    one = with_boxes(picture, Region(0.4, 0.4, 0.6, 0.6), numbers=[8])
    left, top, right, bottom = edges((one != picture).any(axis=2)[: round(0.4 * 239) - 1])
    label = one[top:bottom, left:right]
    parts = np.lib.stride_tricks.sliding_window_view(drawn, label.shape)
    return int((parts == label).all(axis=(-1, -2, -3)).sum())


class TestBoxes:
    def test_they_are_green_with_a_light_fill_and_a_number(self) -> None:
        drawn = with_boxes(frame(), BOX)
        left, top = round(0.25 * 159), round(0.25 * 119)
        right, bottom = round(0.75 * 159), round(0.75 * 119)
        for place in ((60, left), (60, right), (top, 80), (bottom, 80)):
            assert tuple(drawn[place]) == GREEN
        # 15% of green.
        assert tuple(drawn[60, 80]) == (109, 142, 109)
        assert tuple(drawn[5, 5]) == (128, 128, 128)
        assert is_color(drawn[top - 8 : top, left : left + 12], GREEN).any()

    @pytest.mark.parametrize(("height", "width"), SIZES)
    @pytest.mark.parametrize("ground", [255, GREEN, 0])
    def test_their_lines_are_seen_on_any_ground(
        self, height: int, width: int, ground: int | Color
    ) -> None:
        drawn = with_boxes(frame(ground, height, width), BOX)
        row = drawn[height // 2]
        left = round(0.25 * (width - 1))
        line = np.flatnonzero((row[left : width // 2] != row[width // 2]).any(axis=1))
        if ground != GREEN:
            assert np.array_equal(line, np.arange(len(line)))
            assert 1 <= len(line) <= max(2, min(height, width) / 100)
        # The dark edge is outside the line, against a ground of the line's own color, too.
        assert tuple(row[left]) == GREEN
        assert tuple(row[left - 1]) == (0, 0, 0)
        if ground:
            outside = as_color(row[left - width // 20])
            assert contrast(outside, (0, 0, 0)) > 4.5

    def test_each_box_has_its_number_by_position_or_as_given(self) -> None:
        boxes = [Region(0.1, 0.4, 0.3, 0.9), Region(0.6, 0.4, 0.8, 0.9)]
        alone = with_boxes(frame(), *boxes)
        assert np.array_equal(with_boxes(frame(), *boxes, numbers=[1, 2]), alone)
        other = with_boxes(frame(), *boxes, numbers=[1, 77])
        assert np.array_equal(other[:, :80], alone[:, :80])
        assert not np.array_equal(other[:, 80:], alone[:, 80:])

    def test_a_name_is_beside_the_number(self) -> None:
        plain = with_boxes(frame(128, 240, 320), BOX)
        named = with_boxes(frame(128, 240, 320), BOX, names=["dog"])
        top = round(0.25 * 239)
        widths = [
            edges(is_color(picture[: top - 1], GREEN))[2] - edges(is_color(picture, GREEN))[0]
            for picture in (plain, named)
        ]
        assert widths[1] > widths[0] + 15

    def test_a_long_name_is_cut_off_and_the_number_stays(self) -> None:
        picture = frame(128, 240, 320)
        long = with_boxes(picture, BOX, names=["a name without an end " * 500])
        label = edges(is_color(long[:58], GREEN))
        assert 0.3 * 320 < label[2] - label[0] <= 0.45 * 320
        number = with_boxes(picture, BOX)
        # The same "#1" begins both labels.
        assert np.array_equal(long[40:55, 80:95], number[40:55, 80:95])

    @pytest.mark.parametrize(("numbers", "names"), [([1], []), ([], ["a"]), ([1, 2, 3], [])])
    def test_numbers_and_names_are_one_for_each_box(
        self, numbers: list[int], names: list[str]
    ) -> None:
        with pytest.raises(ValueError, match="zip"):
            with_boxes(frame(), BOX, BOX, numbers=numbers, names=names)

    def test_a_label_at_the_top_edge_is_below_its_box(self) -> None:
        drawn = with_boxes(frame(), Region(0.1, 0.0, 0.5, 0.5))
        bottom = round(0.5 * 119)
        assert is_color(drawn[bottom + 2 : bottom + 8, 17:28], GREEN).any()
        assert not is_color(drawn[3 : bottom - 3, 20:70], GREEN).any()

    @pytest.mark.parametrize("corner", [(0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0), (0, 0.5)])
    def test_labels_are_whole_at_every_edge(self, corner: tuple[float, float]) -> None:
        x, y = corner
        drawn = with_boxes(frame(128, 240, 320), Region(x, y, x, y), numbers=[8])
        assert count_labels(drawn) == 1

    def test_labels_of_boxes_close_together_are_all_seen(self) -> None:
        boxes = [Region(0.4 + 0.01 * n, 0.4 + 0.01 * n, 0.6, 0.6) for n in range(6)]
        drawn = with_boxes(frame(128, 240, 320), *boxes, numbers=[8] * 6)
        assert count_labels(drawn) == 6

    @pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 97), (101, 333), (2160, 3840)])
    def test_nothing_vanishes(self, height: int, width: int) -> None:
        picture = frame(128, height, width)
        for box in (Region(0.5, 0.5, 0.5, 0.5), Region(1, 1, 1, 1), Region(0.6, 0.6, 0.4, 0.4)):
            drawn = with_boxes(picture, box)
            line = max(1, round(min(height, width) / 250))
            area = drawn[
                max(0, round(box.y_min * (height - 1)) - 2 * line) :,
                max(0, round(box.x_min * (width - 1)) - 2 * line) :,
            ]
            assert is_color(area, GREEN).sum() >= line * line
            assert is_color(drawn, (0, 0, 0)).sum() >= 20


class TestPoints:
    @pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 97), *SIZES])
    @pytest.mark.parametrize("ground", [128, 255, 0, RED])
    def test_they_are_red_with_a_white_rim_and_a_dark_edge(
        self, height: int, width: int, ground: int | Color
    ) -> None:
        drawn = with_points(frame(ground, height, width), Location(0.5, 0.5))
        x, y = round(0.5 * (width - 1)), round(0.5 * (height - 1))
        row = drawn[y, : x + 1][::-1]
        core = 0
        while tuple(row[core]) == RED:
            core += 1
        assert core >= 2
        rim = core
        while tuple(row[rim]) == (255, 255, 255):
            rim += 1
        assert rim > core
        assert tuple(row[rim]) == (0, 0, 0)

    def test_they_have_numbers_beside_them(self) -> None:
        picture = frame(128, 240, 320)
        drawn = with_points(picture, Location(0.5, 0.5), numbers=[7])
        label = is_color(drawn, DARK_RED)
        left, top, right, bottom = edges(label)
        assert left > 160
        assert abs((top + bottom) / 2 - 120) < 20
        assert (right - left, bottom - top) >= (10, 10)
        assert not np.array_equal(with_points(picture, Location(0.5, 0.5), numbers=[8]), drawn)

    def test_labels_do_not_cover_dots(self) -> None:
        points = [Location(0.4 + 0.03 * number, 0.5) for number in range(5)]
        drawn = with_points(frame(128, 240, 320), *points)
        for point in points:
            assert tuple(drawn[round(0.5 * 239), round(point.x * 319)]) == RED


class TestContrast:
    @pytest.mark.parametrize(("height", "width"), [(240, 320), (2160, 3840)])
    @pytest.mark.parametrize("ground", GROUNDS)
    @pytest.mark.parametrize("opacity", [0.5, 0.8, 1.0])
    def test_labels_are_readable(
        self, height: int, width: int, ground: int, opacity: float
    ) -> None:
        picture = frame(ground, height, width)
        for one, eight in (
            [with_boxes(picture, BOX, opacity=opacity, numbers=[number]) for number in (1, 8)],
            [
                with_points(picture, Location(0.5, 0.5), opacity=opacity, numbers=[number])
                for number in (1, 8)
            ],
        ):
            # Where "1" and "8" differ, there is text in one picture, and its ground in the other.
            differs = (one != eight).any(axis=2)
            colors = np.concatenate((one[differs], eight[differs]))
            assert contrast(*lightest_and_darkest(colors)) >= 4.5

    @pytest.mark.parametrize("ground", GROUNDS)
    @pytest.mark.parametrize("opacity", [0.5, 0.8, 1.0])
    def test_text_on_the_bar_is_readable(self, ground: int, opacity: float) -> None:
        bar = with_text(frame(ground, 240, 320), "MMMM MMMM", opacity)[-18:]
        lightest, _ = lightest_and_darkest(bar.reshape(-1, 3))
        assert contrast(lightest, as_color(bar[0, 0])) >= 4.5

    def test_on_a_ground_of_stripes_too(self) -> None:
        stripes = frame(0, 240, 320)
        stripes[:, ::2] = 255
        bar = with_text(stripes, "M", 0.8)[-14:]
        behind, _ = lightest_and_darkest(bar[:, 200:].reshape(-1, 3))
        written, _ = lightest_and_darkest(bar[:, :20].reshape(-1, 3))
        assert contrast(written, behind) >= 4.5


class TestText:
    @pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 97), (100, 3000), *SIZES])
    @pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
    def test_the_bar_is_at_the_bottom_and_at_most_a_third(
        self, height: int, width: int, scale: float
    ) -> None:
        picture = frame((200, 60, 60), height, width)
        for text in ("word", "many words " * 1000):
            drawn = with_text(picture, text, scale=scale)
            changed = (drawn != picture).any(axis=2)
            bar = int(changed.any(axis=1).sum())
            assert 0 < bar <= height / 3
            assert changed[-bar:].all()
            assert (drawn[-bar:, :, 1] > 130).any(), "there is no text"
        # Another line would not fit.
        assert bar > height / 6 - 2

    def test_one_line_takes_less_than_many(self) -> None:
        picture = frame(200, 480, 640)
        one, two = (
            bar_height(with_text(picture, text), picture) for text in ("word", "word\nword")
        )
        assert one < two < 2 * one
        assert rows_with_text(with_text(frame(0, 480, 640), "nnn\nnnn\nnnn")) == 3

    @pytest.mark.parametrize("scale", [0.5, 1.0])
    def test_text_is_at_least_nine_pixels_high_at_240p(self, scale: float) -> None:
        picture = frame(0, 240, 320)
        bright = (with_text(picture, "Áj", scale=scale) > 100).all(axis=2)
        assert edges(bright)[3] - edges(bright)[1] >= 9
        if scale == 1:
            capital = (with_text(picture, "M") > 100).all(axis=2)
            assert edges(capital)[3] - edges(capital)[1] >= 9

    def test_the_font_scale_scales_it(self) -> None:
        heights = []
        for scale in (0.5, 1.0, 2.0, 3.0):
            bright = (with_text(frame(0, 720, 1280), "M", scale=scale) > 100).all(axis=2)
            heights.append(edges(bright)[3] - edges(bright)[1])
        assert [round(height / heights[1], 1) for height in heights] == pytest.approx(
            [0.5, 1, 2, 3], abs=0.1
        )

    @pytest.mark.parametrize("text", ["", " \n ", "\u200b", "\x00"])
    def test_without_text_there_is_no_bar(self, text: str) -> None:
        assert (with_text(frame(), text) == frame()).all()

    @pytest.mark.parametrize(
        "text", ["word", "Ωδή", "Яма", "سلام", "שלום", "字", "ไทย", "हिन्दी", "😀", "\U0003fffe"]
    )
    def test_every_script_is_seen(self, text: str) -> None:
        bar = with_text(frame(0, 240, 320), text)[-20:]
        assert (bar > 200).all(axis=2).sum() + (bar.max(axis=2) > 200).sum() > 15
        assert not np.array_equal(bar, with_text(frame(0, 240, 320), text + text)[-20:])

    def test_right_to_left_text_is_at_the_right(self) -> None:
        bright = (with_text(frame(0, 240, 320), "שלום") > 100).all(axis=2)
        assert edges(bright)[0] > 240
        assert edges(bright)[2] >= 310

    def test_it_ends_with_an_ellipsis_if_it_is_cut_off(self) -> None:
        """Three dots on the baseline are all that is behind the last word."""
        picture = frame(0, 240, 320)
        whole = with_text(picture, "words " * 500)
        bright = (whole > 60).all(axis=2)
        right = edges(bright[220:])[2]
        ends = np.flatnonzero(bright[222:, right - 9 : right].any(axis=1))
        assert len(ends) <= 3

    def test_fonts_for_other_scripts_are_given_by_the_caller(self, tmp_path: Path) -> None:
        font = write_font(tmp_path / "toy.ttf", "字")
        with_font, without = (Typesetter(extra, [tmp_path / "none"]) for extra in ([font], []))
        pictures: list[Any] = []
        for typesetter in (with_font, without):
            overlay = Overlay(frame(0, 240, 320), 1.0, 1.0, typesetter=typesetter)
            overlay.text("字")
            pictures.append((overlay.render() > 200).all(axis=2))
        assert not np.array_equal(*pictures)
        # The toy's glyph is a full rectangle.
        left, top, right, bottom = edges(pictures[0])
        assert pictures[0][top:bottom, left:right].all()

    def test_pictures_keep_their_colors(self, tmp_path: Path) -> None:
        font = write_font(tmp_path / "toy.ttf", "😀", color=(250, 30, 60))
        overlay = Overlay(
            frame(0, 240, 320), 1.0, 1.0, typesetter=Typesetter([font], [tmp_path / "none"])
        )
        overlay.text("n😀n")
        overlay.points([Location(0.5, 0.5)], names=["😀"])
        drawn = overlay.render()
        for area in (drawn[160:], drawn[:160]):
            picture = np.abs(area.astype(int) - (250, 30, 60)).max(axis=2) <= 2
            left, top, right, bottom = edges(picture)
            assert right - left >= 8
            assert bottom - top >= 8
        # The letters around it are white.
        assert (drawn[160:] > 150).all(axis=2).sum() > 10

    def test_a_high_font_late_in_a_text_is_not_cut_off(self, tmp_path: Path) -> None:
        font = write_font(tmp_path / "toy.ttf", "字", ascent=1150, descent=-400)
        overlay = Overlay(
            frame(0, 240, 320), 1.0, 0.5, typesetter=Typesetter([font], [tmp_path / "none"])
        )
        overlay.text("l " * 270 + "\n字字字")
        shown = overlay.render()
        assert rows_with_text(shown) == 6
        # The toy's glyphs are 8 tenths of an em of 9 pixels high, and 8 tenths wide.
        last: Any = (shown[225:] > 150).all(axis=2)
        assert edges(last[:, :30])[3] - edges(last[:, :30])[1] == 7
        assert last.sum() >= 3 * 6 * 6


class TestQuery:
    @pytest.mark.parametrize(("height", "width"), [(64, 64), *SIZES])
    @pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
    def test_question_and_answer_have_a_line_each(
        self, height: int, width: int, scale: float
    ) -> None:
        picture = frame(0, height, width)
        drawn = with_query(picture, "n", "n", scale)
        assert rows_with_text(drawn) == 2
        bright = (drawn > 100).all(axis=2)
        assert edges(bright)[1] >= height * 2 / 3

    def test_a_long_question_leaves_room_for_the_answer(self) -> None:
        picture = frame(0, 240, 320)
        drawn = with_query(picture, "many words " * 200, "yes")
        assert not np.array_equal(drawn, with_query(picture, "many words " * 200, "no"))
        long = with_query(picture, "n", "nnnn " * 200)
        assert rows_with_text(long[160:]) >= 4
        assert not np.array_equal(long, with_query(picture, "m", "nnnn " * 200))

    def test_a_long_question_takes_at_most_a_third_of_the_lines(self) -> None:
        question = "many words " * 200
        one, other = (
            with_query(frame(0, 240, 320), question, answer * 200) for answer in ("nnn ", "uuu ")
        )
        assert rows_with_text(one) >= 5
        assert rows_with_text(one * (one != other)) >= rows_with_text(one) * 2 / 3

    def test_an_answer_has_its_own_direction(self) -> None:
        bright: Any = (with_query(frame(0, 240, 320), "n", "שלום") > 100).all(axis=2)
        rows = np.flatnonzero(bright.any(axis=1))
        middle = (rows[0] + rows[-1]) // 2
        assert edges(bright[:middle])[0] < 20
        assert edges(bright[middle:])[0] > 200
        assert edges(bright[middle:])[2] > 310

    def test_newlines_of_a_question_are_spaces(self) -> None:
        one, other = (with_query(frame(), question, "n") for question in ("a\n\nb", "a b"))
        assert np.array_equal(one, other)


class TestOverlay:
    def test_labels_keep_clear_of_text_that_is_drawn_first(self) -> None:
        overlay = Overlay(frame(128, 240, 320), 1.0, 1.0)
        overlay.text("word")
        bar = edges((overlay.render() != 128).any(axis=2))[1]
        before = overlay.render()[bar:].copy()
        overlay.boxes([Region(0.1, 0.0, 0.5, (bar - 3) / 239)])
        assert np.array_equal(overlay.render()[bar:], before)

    @pytest.mark.parametrize("feature", ["boxes", "points", "text"])
    def test_opacity_scales_what_is_drawn(self, feature: str) -> None:
        changes = []
        for opacity in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
            overlay = Overlay(frame(), opacity, 1.0)
            overlay.boxes([BOX] if feature == "boxes" else [])
            overlay.points([Location(0.5, 0.5)] if feature == "points" else [])
            overlay.text("word" if feature == "text" else "")
            changes.append(int(np.abs(overlay.render().astype(int) - 128).sum()))
        assert changes[0] == 0
        assert changes == sorted(set(changes))

    def test_it_draws_on_a_copy_or_in_place(self) -> None:
        picture = frame()
        expected = with_boxes(picture, BOX)
        assert (picture == 128).all()
        overlay = Overlay(picture, 1.0, 1.0, in_place=True)
        overlay.boxes([BOX])
        assert overlay.render() is picture
        assert np.array_equal(picture, expected)

    def test_read_only_frames_and_views_are_copied(self) -> None:
        whole = frame(128, 240, 320)
        part = whole[::2, ::-2]
        part.flags.writeable = False
        assert np.array_equal(with_boxes(part, BOX), with_boxes(frame(), BOX))
        assert (whole == 128).all()
        for refused in (part, whole[::2], whole[..., ::-1]):
            with pytest.raises(ValueError, match="writable and contiguous"):
                Overlay(refused, 1.0, 1.0, in_place=True)

    @pytest.mark.parametrize("scale", [0.5, 3.0])
    @pytest.mark.parametrize(
        ("height", "width"), [(0, 0), (1, 1), (2, 3), (4, 4), (1, 500), (500, 1), (33, 31)]
    )
    def test_places_beyond_the_frame_and_tiny_frames_are_drawn(
        self, height: int, width: int, scale: float
    ) -> None:
        overlay = Overlay(frame(0, height, width), 1.0, scale)
        beyond = float("inf")
        overlay.boxes(
            [
                Region(-0.5, -0.5, 1.5, 1.5),
                Region(0.9, 0.9, 0.1, 0.1),
                Region(-beyond, float("nan"), beyond, 2),
            ],
            [0, -1, 10**30],
            ["", "\n\u200d\x00", "字" * 100_000],
        )
        overlay.points([Location(2, 2), Location(float("nan"), -beyond)])
        overlay.text("words and more words\nand more")
        overlay.query("", "")
        assert overlay.render().shape == (height, width, 3)

    def test_a_box_beyond_the_frame_is_seen_at_its_edges(self) -> None:
        drawn = with_boxes(frame(), Region(-0.5, -0.5, 1.5, 1.5))
        assert tuple(drawn[0, 100]) == tuple(drawn[119, 100]) == GREEN
        assert tuple(drawn[60, 0]) == tuple(drawn[60, 159]) == GREEN
