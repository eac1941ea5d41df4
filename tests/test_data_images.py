"""Image files of every kind become RGB by rule."""

import numpy as np
import pytest
import torch

from normlab.lab.data import folder

Image = pytest.importorskip("PIL.Image")

RULES = {
    "75: grey": ("L", (77,), (77, 77, 77)),
    "75: CMYK": ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
    "75: LA, half transparent over white": ("LA", (0, 128), (127, 127, 127)),
    "75: RGBA, transparent": ("RGBA", (9, 9, 9, 0), (255, 255, 255)),
    "75: RGBA, opaque": ("RGBA", (9, 8, 7, 255), (9, 8, 7)),
    "75: 16 bits": ("I;16", (30000,), (117, 117, 117)),
    "75: 16 bits, white": ("I;16", (65535,), (255, 255, 255)),
    "75: black and white": ("1", (1,), (255, 255, 255)),
}


@pytest.mark.parametrize(("mode", "pixel", "expected"), RULES.values(), ids=RULES)
def test_image_becomes_rgb_by_rule(tmp_path, mode, pixel, expected):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    options = {"quality": 100} if mode == "CMYK" else {}
    Image.new(mode, (3, 2), pixel if len(pixel) > 1 else pixel[0]).save(path, **options)
    image = folder.decode(path)
    assert image.shape == (3, 2, 3)
    assert (image[:, 0, 0].int() - torch.tensor(expected)).abs().max() <= (mode == "CMYK")


def test_75_palette_with_transparency_becomes_white_there(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putdata([0, 1])
    image.save(tmp_path / "x.png", transparency=0)
    assert folder.decode(tmp_path / "x.png").permute(1, 2, 0).tolist() == [
        [[255, 255, 255], [200, 0, 0]]
    ]


def test_75_photograph_is_turned_as_its_EXIF_data_says(tmp_path):
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    image.save(tmp_path / "x.png", exif=exif)
    turned = folder.decode(tmp_path / "x.png")
    assert turned.shape == (3, 4, 2)
    assert turned[0, 0].tolist() == [0, 255]


def test_76_animated_gif_gives_its_first_frame(tmp_path):
    frames = [Image.new("L", (2, 2), v) for v in (50, 150)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert folder.decode(tmp_path / "x.gif").unique().tolist() == [50]


def test_resized_image_equals_interpolation(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None].double(),
        (16, 16),
        mode="bilinear",
        antialias=True,
    )[0]
    assert (folder.decode(tmp_path / "x.png", 16) - exact).abs().max() <= 1
