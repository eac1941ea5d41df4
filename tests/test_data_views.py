"""What is seen of a picture: the whole, the centre, a part; in files and in memory alike."""

import numpy as np
import pytest
import torch
from files import write_hdf5

from normlab.lab import data
from normlab.lab.data import hdf5, pictures
from normlab.lab.data.batches import Batches
from normlab.lab.data.dataset import DataError, Dataset
from normlab.lab.data.loader import stream
from normlab.lab.data.paths import Paths
from normlab.lab.data.pictures import OnDisk, Pictures, decode
from normlab.lab.data.views import Box, Resampled, centre, viewed

Image = pytest.importorskip("PIL.Image")


def smooth(height, width):
    """A picture without edges, of which a part resized hardly depends on the filter."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    bands = [np.sin(3 * x + y), np.cos(2 * y - x), x * y * 2 - 1]
    return (127.5 + 120 * np.stack(bands, -1)).round().astype(np.uint8)


@pytest.fixture
def files(tmp_path):
    """Wide, high and square, as PNG and as JPEG."""
    paths = []
    for k, (height, width) in enumerate([(90, 160), (200, 75), (64, 64), (700, 900)]):
        for ending, options in (("png", {}), ("jpg", {"quality": 95, "subsampling": 0})):
            Image.fromarray(smooth(height, width)).save(tmp_path / f"{k}.{ending}", **options)
            paths.append(f"{k}.{ending}")
    return Pictures(OnDisk(Paths(tmp_path, paths))), tmp_path


def half_a_pixel(image):
    """The most that a picture changes over half a pixel, down or across."""
    down, across = image.int().diff(dim=-2).abs().max(), image.int().diff(dim=-1).abs().max()
    return (down + across) / 2


def torchvisions(path, transform):
    with Image.open(path) as image:
        return torch.from_numpy(np.array(transform(image.convert("RGB")))).permute(2, 0, 1)


def test_centre_is_that_of_resize_and_centre_crop(files):
    transforms = pytest.importorskip("torchvision.transforms.v2")
    store, _ = files
    ours = store.at(28, "centre")[torch.arange(8)]
    judged = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28)])
    for image, path in zip(ours, store._files._paths):
        theirs = torchvisions(path, judged)
        # theirs is at whole pixels of the resized picture, which moves it by up to half of one
        assert (image.int() - theirs.int()).abs().max() <= half_a_pixel(theirs) + 2, path


def test_part_is_that_of_resized_crop(files):
    transforms = pytest.importorskip("torchvision.transforms.v2.functional")
    store, _ = files
    box = Box(5, 9, 61, 60)
    ours = store.at(28, "whole").parts(torch.arange(8), [lambda h, w: box] * 8)
    for image, path in zip(ours, store._files._paths):
        cut = lambda x: transforms.resized_crop(x, 9, 5, 51, 56, [28, 28])  # noqa: E731
        assert (image.int() - torchvisions(path, cut).int()).abs().max() <= 2, path


def test_whole_is_the_picture_squashed(files):
    store, _ = files
    ours = store.at(28, "whole")[torch.arange(8)]
    for image, path in zip(ours, store._files._paths):
        theirs = torchvisions(path, lambda x: x.resize((28, 28), Image.Resampling.BILINEAR))
        assert (image.int() - theirs.int()).abs().max() <= 3, path


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_jpeg_decoded_without_needless_detail_gives_the_same_part(tmp_path, monkeypatch, scale):
    path = tmp_path / "x.jpg"
    Image.fromarray(smooth(600, 803)).save(path, quality=95)
    size = 256 // scale
    fast = decode(path, size, lambda h, w: Box(33, 71, 301, 345))
    asked = []
    monkeypatch.setattr(pictures, "_draft", lambda image, shrinks: asked.append(shrinks) or 1)
    full = decode(path, size, lambda h, w: Box(33, 71, 301, 345))
    assert asked[0] >= scale
    # the smaller picture is cut at its own whole pixels
    assert (fast.int() - full.int()).abs().max() <= half_a_pixel(full) + 2


def test_parts_of_a_turned_photograph_are_cut_after_turning(tmp_path):
    pixels = smooth(40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.rot90(pixels, -1).copy()).save(tmp_path / "plain.png")
    for place in (centre, lambda h, w: Box(0, 20, 40, 50)):
        one, other = (decode(tmp_path / f"{n}.png", 16, place) for n in ("turned", "plain"))
        assert torch.equal(one, other)


def test_grey_and_palette_pictures_are_cut_as_in_rgb(tmp_path):
    grey = Image.fromarray(smooth(40, 60)[..., 0])
    grey.save(tmp_path / "grey.png")
    grey.convert("RGB").save(tmp_path / "rgb.png")
    grey.convert("P").save(tmp_path / "palette.png")
    wanted = decode(tmp_path / "rgb.png", 16, centre)
    assert torch.equal(decode(tmp_path / "grey.png", 16, centre), wanted)
    assert torch.equal(decode(tmp_path / "palette.png", 16, centre), wanted)


PARTS = [
    pytest.param(centre, id="centre"),
    pytest.param(lambda height, width: Box(5, 9, 41, 60), id="part"),
]


@pytest.mark.parametrize("place", PARTS)
def test_images_in_memory_are_cut_as_files_are(tmp_path, place):
    pixels = smooth(60, 80)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    stored = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
    ours = Resampled(stored, (28, 28)).parts(torch.tensor([0]), [place])
    assert torch.equal(ours[0], decode(tmp_path / "x.png", 28, place))


def test_part_in_memory_is_cut_and_resized():
    stored = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(2, 3, 8, 8)
    store = Resampled(stored, (4, 4))
    parts = store.parts(torch.tensor([1, 0]), [lambda h, w: Box(2, 3, 6, 7)] * 2)
    assert torch.equal(parts, stored[:, :, 3:7, 2:6])


@pytest.mark.parametrize(
    ("size", "view", "shape"),
    [
        pytest.param(None, "whole", (8, 6), id="as stored"),
        pytest.param(None, "centre", (6, 6), id="short side"),
        pytest.param(5, "whole", (5, 5), id="5, whole"),
        pytest.param(5, "centre", (5, 5), id="5, centre"),
        pytest.param(20, "centre", (20, 20), id="larger"),
    ],
)
def test_size_of_what_is_seen(tmp_path, size, view, shape):
    Image.new("RGB", (6, 8)).save(tmp_path / "x.png")
    for stored in (
        torch.zeros(1, 3, 8, 6, dtype=torch.uint8),
        Pictures(OnDisk(Paths(tmp_path, ["x.png"]))),
    ):
        seen = viewed(stored, size, view)
        assert tuple(seen.shape) == (1, 3, *shape)
        assert seen[torch.tensor([0])].shape == (1, 3, *shape)


@pytest.mark.parametrize("view", ["whole", "centre"])
def test_images_that_stay_in_hdf5_are_seen_as_those_in_memory(tmp_path, monkeypatch, view):
    pytest.importorskip("h5py")
    pixels = np.stack([smooth(30, 40), smooth(30, 40)[::-1], smooth(30, 40) // 2])
    address = f"hdf5:{write_hdf5(tmp_path / 'x.h5', pixels, np.array([0, 1, 0]))}"
    how = {"image_size": 16, "view": view, "validation": 0.1}
    eager = data.load(address, "train", **how)
    for module in (data, hdf5):
        monkeypatch.setattr(module, "IN_MEMORY", 100)
    lazy = data.load(address, "train", **how)
    assert not isinstance(lazy.images, torch.Tensor)
    assert torch.equal(lazy.images[torch.arange(2)], eager.images[torch.arange(2)])
    if view == "centre":
        places = [Batches(d, 2, seed=0, augment="imagenet")[0, 0].images for d in (lazy, eager)]
        assert torch.equal(*places)


def _folder(top, *, classes=2, each=3):
    for name in "abcdefgh"[:classes]:
        (top / name).mkdir(parents=True)
        for k in range(each):
            Image.fromarray(smooth(40, 50 + k)).save(top / name / f"{k}.png")
    return top


def test_training_images_of_which_parts_are_wanted_stay_in_their_files(tmp_path):
    _folder(tmp_path / "train")
    _folder(tmp_path / "val")
    how = {"image_size": 24, "view": "centre"}
    with pytest.warns(UserWarning, match="are in"):  # the same pictures in both
        train = data.load(f"folder:{tmp_path}", "train", **how)
    judged = data.load(f"folder:{tmp_path}", "validation", **how)
    assert isinstance(train.images, Pictures)
    assert isinstance(judged.images, torch.Tensor)
    assert torch.equal(train.images[torch.arange(6)], judged.images)


def test_unknown_view_names_those_there_are():
    with pytest.raises(DataError, match="'middle' is no view; there are whole, centre"):
        data.load("digits", "train", view="middle")


@pytest.fixture
def damaged(tmp_path):
    """A folder in which one training and one validation image cannot be read."""
    for split in ("train", "val"):
        _folder(tmp_path / split)
    for path in (tmp_path / "train" / "a" / "1.png", tmp_path / "val" / "b" / "0.png"):
        path.write_bytes(b"")
    return f"folder:{tmp_path}"


@pytest.mark.filterwarnings("ignore:.* images of .* are in")  # the same pictures in both
@pytest.mark.parametrize(("split", "name"), [("train", "a/1"), ("validation", "b/0")])
def test_F10_damaged_picture_stops_with_its_path_and_index(damaged, split, name):
    index = {"a/1": 1, "b/0": 3}[name]
    message = rf"{name}.png is empty \(0 bytes\).*\(image {index} of its set\)$"
    with pytest.raises(DataError, match=message):
        data.load(damaged, split, image_size=8)


@pytest.mark.filterwarnings("ignore:.* images of .* are in")
def test_F10_damaged_training_picture_is_left_for_the_batches_to_replace(damaged):
    dataset = data.load(damaged, "train", image_size=8, skip_bad=True)
    assert (type(dataset.images), len(dataset), dataset.skipped) == (Pictures, 6, ())
    batch = Batches(dataset, 6, seed=0, augment="imagenet", skip_bad=True)[0, 0]
    assert sorted(batch.indices.tolist()) == [0, 2, 2, 3, 4, 5]
    assert batch.skipped[0].endswith("(image 1 of its set); image 2 is in its place")


@pytest.mark.filterwarnings("ignore:.* images of .* are in")
@pytest.mark.parametrize("fits", [True, False], ids=["in memory", "too large"])
def test_F10_damaged_validation_picture_is_left_out_and_reported(damaged, monkeypatch, fits):
    if not fits:
        monkeypatch.setattr(data, "IN_MEMORY", 100)
    with pytest.warns(UserWarning, match=r"1 of 6 images: .*b/0.png is empty .*; left out"):
        dataset = data.load(damaged, "validation", image_size=8, skip_bad=True)
    assert isinstance(dataset.images, torch.Tensor) == fits
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1]
    assert dataset.images[torch.arange(5)].shape == (5, 3, 8, 8)
    assert len(dataset.skipped) == 1


def test_F10_set_without_any_readable_picture_stops(tmp_path):
    for split, value in (("train", smooth(8, 8).tobytes()), ("val", b"")):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "x.png").write_bytes(value)
    with pytest.raises(DataError, match="none of 2 images can be read; the first: .*a/x.png is"):
        data.load(f"folder:{tmp_path}", "validation", image_size=8, skip_bad=True)


def test_selected_pictures_are_the_same_pictures(files):
    store, _ = files
    small = Dataset(store.at(8, "whole"), torch.arange(8), tuple("abcdefgh"))
    few = small.select(torch.tensor([6, 1, 3])).select(torch.tensor([2, 0]))
    assert torch.equal(few.images[torch.arange(2)], small.images[torch.tensor([3, 6])])
    assert few.labels.tolist() == [3, 6]


def test_workers_decode_the_same_pictures(files):
    store, _ = files
    seen = store.at(8, "centre")
    places = [torch.tensor([5, 0, 2]), torch.tensor([1])]
    for images, place in zip(stream(seen, places, workers=1), places, strict=True):
        assert torch.equal(images, seen[place])


def test_missing_package_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r'need Pillow: pip install "normlab\[lab\]"'):
        Pictures(OnDisk(Paths(tmp_path, ["x.png"])))
