import hashlib
import pickle
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from trainer_runs import picture

from trainer import cache, data, decode
from trainer.config import DATA, PLACES, configure
from trainer.data import cifar10, feed, folder
from trainer.errors import BadData, DownloadFailed, UnreadableImage
from trainer.folder import IMAGES, list_files
from trainer.tasks import normalised

CPU = torch.device("cpu")


@pytest.fixture
def load(tmp_path):
    """Load a data set with a cache of its own; what it said is in load.said."""

    def load_data(name, **fields):
        load_data.said = []
        config = configure({"data": name, "cache_dir": tmp_path / "cache", **fields})
        return data.load(config, CPU, load_data.said.append)

    return load_data


# ---- digits


def test_digits_are_1437_and_360_stratified_the_same_each_time(load):
    digits = load("digits")
    assert (len(digits.train), len(digits.test), len(digits.classes)) == (1437, 360, 10)
    assert digits.train.inputs.dtype == torch.uint8
    assert digits.train.inputs.shape[1:] == (3, 32, 32)
    share = torch.bincount(digits.test.targets) / torch.bincount(torch.cat([digits.train.targets, digits.test.targets]))
    assert (share - 0.2).abs().max() < 0.01
    assert load("digits").fingerprint == digits.fingerprint == "1797-1437-8e233f52-aed79c71"


def test_no_digit_is_in_both_parts(load):
    from sklearn.datasets import load_digits

    digits = load("digits")
    both = torch.cat([digits.train.targets, digits.test.targets])
    assert torch.bincount(both).tolist() == np.bincount(load_digits().target).tolist()
    train = {image.numpy().tobytes() for image in digits.train.inputs}
    assert not [at for at, image in enumerate(digits.test.inputs) if image.numpy().tobytes() in train]


def test_limit_takes_the_first_training_images_and_all_for_testing(load):
    limited, full = load("digits", limit=20), load("digits")
    assert torch.equal(limited.train.inputs, full.train.inputs[:20])
    assert len(limited.test) == 360


# ---- pixels


def test_normalising_is_bitwise_torchvisions_totensor_and_normalize():
    from torchvision import transforms

    torchvisions = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    every_level = np.arange(256 * 12, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3)
    ours = normalised(torch.from_numpy(every_level.transpose(2, 0, 1).copy())[None])[0]
    assert torch.equal(ours.contiguous(), torchvisions(Image.fromarray(every_level)))


# ---- folders


def test_a_folder_is_read_as_pillow_reads_it_resized_and_coloured(images, load):
    found = load(f"folder:{images}")
    assert found.classes == ("ape", "bee", "cat")
    assert (len(found.train), len(found.test)) == (30, 6)
    files = list_files(images, IMAGES).train
    for pixels, label, file in zip(found.train.inputs, found.train.targets, files, strict=True):
        plain = Image.open(file.path).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(plain)), file.path
        assert f"/{found.classes[label]}/" in file.path


def kinds_of_jpeg(folder):
    """JPEG files of every kind that a folder may hold, by what is particular about each."""
    whole, grey, noise = picture("a"), picture("a").convert("L"), picture("c", side=48)
    whole.save(folder / "plain.jpg")
    whole.save(folder / "fine.jpg", quality=100, subsampling=0)
    whole.save(folder / "progressive.jpg", progressive=True, optimize=True)
    whole.save(folder / "restarts.jpg", restart_marker_blocks=1)
    whole.save(folder / "with notes.jpg", comment=b"\xff\xc0" * 40, exif=b"Exif\0\0" + b"\xff\xd8\xff\xc0" * 20)
    whole.save(folder / "in rgb.jpg", keep_rgb=True)
    whole.convert("CMYK").save(folder / "cmyk.jpg")
    grey.save(folder / "grey.jpg")
    noise.resize((40, 17)).save(folder / "odd sides.jpg")
    picture("b", side=1100).save(folder / "large.jpg", quality=100, subsampling=0)  # in two reads, over a megapixel
    plain = (folder / "plain.jpg").read_bytes()
    (folder / "more behind it.jpg").write_bytes(plain + b"\0more")
    (folder / "filled up.jpg").write_bytes(plain[:2] + b"\xff\xff" + plain[2:])
    (folder / "a png.jpg").write_bytes(b"")
    whole.save(folder / "a png.jpg", "PNG")
    return sorted(folder.iterdir())


def test_jpegs_of_every_kind_are_bit_for_bit_what_pillow_opens(tmp_path):
    paths = kinds_of_jpeg(tmp_path)
    pixels, failures = decode.decode([str(path) for path in paths], 32)
    assert failures == [] and len(paths) == 13
    for found, path in zip(pixels, paths, strict=True):
        plain = Image.open(path).convert("RGB")
        plain = plain if plain.size == (32, 32) else plain.resize((32, 32), Image.Resampling.BILINEAR)
        assert np.array_equal(found.transpose(1, 2, 0), np.asarray(plain)), path.name
    shortened = [path.name for path in paths if decode._small_jpeg(path.read_bytes())]
    assert {"plain.jpg", "fine.jpg", "progressive.jpg", "grey.jpg", "odd sides.jpg"} <= set(shortened)
    assert not {"large.jpg", "cmyk.jpg", "a png.jpg"} & set(shortened)


def test_a_jpeg_that_is_cut_off_anywhere_is_told_as_pillow_tells_it(tmp_path):
    picture("a").save(tmp_path / "whole.jpg", quality=90)
    whole, path = (tmp_path / "whole.jpg").read_bytes(), tmp_path / "cut.jpg"
    for length in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:length])
        pixels, failures = decode.decode([str(path)], 32)
        try:
            expected = np.asarray(Image.open(path))
        except Exception:
            assert len(failures) == 1 and not pixels.any(), length
        else:
            assert failures == [] and np.array_equal(pixels[0].transpose(1, 2, 0), expected), length


def test_classes_take_turns_so_that_a_first_part_is_balanced(images, load):
    assert load(f"folder:{images}").train.targets[:9].tolist() == [0, 1, 2] * 3


def test_a_folder_without_parts_is_split_nine_to_one_always_alike(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        for i in range(20):
            picture(i).save(tmp_path / name / f"{i}.png")
    listing = list_files(tmp_path, IMAGES)
    assert (len(listing.train), len(listing.test)) == (36, 4)
    assert sorted(file.label for file in listing.test) == [0, 0, 1, 1]
    assert not {file.path for file in listing.train} & {file.path for file in listing.test}
    held_out = {file.path for file in listing.test}
    (tmp_path / "x" / "20.png").write_bytes((tmp_path / "x" / "0.png").read_bytes())  # one more doesn't reshuffle
    assert len(held_out & {file.path for file in list_files(tmp_path, IMAGES).test}) >= 3


def test_many_cores_decode_the_same_as_one(images, load, tmp_path, monkeypatch):
    alone = load(f"folder:{images}")
    monkeypatch.setattr(decode, "ALONE_BELOW_BYTES", 0)
    monkeypatch.setattr(decode, "CHUNK", 7)
    monkeypatch.setattr(decode, "available_cores", lambda: 2)
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "other", tmp_path / "file" / "cache"):  # each into the cache's file, and where none can be
        together = load(f"folder:{images}", cache_dir=place)
        assert torch.equal(alone.train.inputs, together.train.inputs)
        assert torch.equal(alone.test.inputs, together.test.inputs)


@pytest.mark.parametrize("alone_below", [0, 10_000_000])
def test_unreadable_images_are_named(images, load, monkeypatch, alone_below):
    monkeypatch.setattr(decode, "ALONE_BELOW_BYTES", alone_below)
    (images / "train/ape/0.jpg").write_bytes(b"no picture")
    whole = (images / "train/bee/0.jpg").read_bytes()
    (images / "train/bee/0.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableImage) as caught:
        load(f"folder:{images}")
    assert "2 files are no readable image" in str(caught.value)
    assert "ape/0.jpg (not an image)" in str(caught.value)
    assert "bee/0.jpg" in str(caught.value)


def _empty(folder):
    folder.mkdir()


def _file(folder):
    folder.write_text("")


def _no_test(folder):
    (folder / "train" / "a").mkdir(parents=True)


def _one_class(folder):
    (folder / "a").mkdir(parents=True)
    picture(1).save(folder / "a" / "1.png")


def _single_images(folder):
    for name in "ab":
        (folder / name).mkdir(parents=True)
        picture(name).save(folder / name / "1.png")


def _unknown_class(folder):
    for part, names in (("train", "ab"), ("test", "abc")):
        for name in names:
            (folder / part / name).mkdir(parents=True)
            picture(name).save(folder / part / name / "1.png")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: None, "does not exist"),
        (_file, "is not a folder"),
        (_empty, "no images in folders by class"),
        (_no_test, "no folder 'test'"),
        (_one_class, "only one class, a,"),
        (_single_images, "no image for testing"),
        (_unknown_class, "no images of: c"),
    ],
)
def test_a_folder_that_will_not_do_is_refused_in_words(tmp_path, load, make, told):
    make(tmp_path / "data")
    with pytest.raises(BadData, match=told):
        load(f"folder:{tmp_path / 'data'}")


# ---- the cache


def test_the_second_time_nothing_is_decoded_and_nothing_is_written_beside_the_data(images, load, monkeypatch):
    before = sorted(images.rglob("*"))
    first = load(f"folder:{images}")
    monkeypatch.setattr(folder, "decode_into", lambda *_: pytest.fail("decoded again"))
    second = load(f"folder:{images}")
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert first.fingerprint == second.fingerprint
    assert load.said == []
    assert sorted(images.rglob("*")) == before


def test_the_cache_is_memory_mapped_and_never_written_through(images, load, tmp_path):
    load(f"folder:{images}").train.inputs.zero_()
    assert load(f"folder:{images}").train.inputs.any()


@pytest.mark.parametrize("change", ["replaced", "added", "removed", "moved"])
def test_a_changed_folder_is_decoded_anew_and_the_old_entry_goes(images, load, tmp_path, change):
    old = load(f"folder:{images}")
    one = images / "train/ape/4.jpg"
    if change == "replaced":
        picture("another").save(one)
    elif change == "added":
        picture("another").save(images / "train/ape/new.png")
    elif change == "removed":
        one.unlink()
    else:
        one.rename(images / "train/bee/moved.jpg")
    new = load(f"folder:{images}")
    assert load.said
    assert new.fingerprint != old.fingerprint or not torch.equal(new.train.inputs, old.train.inputs)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_damaged_cache_entry_is_made_again(images, load, tmp_path):
    first = load(f"folder:{images}")
    expected = first.train.inputs.clone()
    (array,) = (tmp_path / "cache").glob("*/inputs.npy")
    array.write_bytes(array.read_bytes()[:500])
    assert torch.equal(load(f"folder:{images}").train.inputs, expected)
    load(f"folder:{images}")
    assert load.said == []


def test_without_a_writable_cache_it_works_and_says_so(images, load, tmp_path):
    (tmp_path / "file").write_text("")
    found = load(f"folder:{images}", cache_dir=tmp_path / "file" / "cache")
    assert len(found.train) == 30
    assert "cannot write the cache" in load.said[0]


def test_a_full_disk_is_said_and_survived(images, load, monkeypatch):
    def no_room(path, shape, dtype):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_room", no_room)
    assert len(load(f"folder:{images}").train) == 30
    assert any("No space left on device" in line for line in load.said)


# ---- CIFAR-10


@pytest.fixture
def fake_cifar10(tmp_path, monkeypatch):
    """Five batches of 4 images and one for testing, as they are published, with the checksums of these."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": [seed, 1, 2, 3]}

    monkeypatch.setattr(CIFAR10, "train_list", [write(f"data_batch_{i}", batch(i)) for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch(9))])
    meta = write("batches.meta", {"label_names": [f"class{i}" for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    monkeypatch.setattr(cifar10, "MD5", dict([*CIFAR10.train_list, *CIFAR10.test_list, meta]))
    return tmp_path / "root"


def test_cifar10_is_read_as_torchvision_reads_it_and_then_cached(fake_cifar10, load, monkeypatch):
    from torchvision.datasets import CIFAR10

    theirs = CIFAR10(fake_cifar10, train=True)
    ours = load("cifar10", data_root=fake_cifar10)
    assert np.array_equal(ours.train.inputs.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert ours.train.targets.tolist() == theirs.targets
    assert (len(ours.train), len(ours.test), ours.classes[3]) == (20, 4, "class3")
    monkeypatch.setattr(cifar10, "_contents", None)  # from here on reading it fails
    assert torch.equal(load("cifar10", data_root=fake_cifar10).train.inputs, ours.train.inputs)


@pytest.mark.parametrize("damage", ["altered", "missing", "all of it"])
def test_cifar10_is_taken_from_its_archive_where_a_file_is_not_the_published_one(
    fake_cifar10, load, monkeypatch, damage
):
    folder, archive = fake_cifar10 / cifar10.FOLDER, fake_cifar10 / cifar10.ARCHIVE
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, cifar10.FOLDER)
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # nothing listens there
    if damage == "all of it":
        shutil.rmtree(folder)
    elif damage == "missing":
        (folder / "data_batch_3").unlink()
    else:
        (folder / "data_batch_3").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")  # a pickle that would run a program
    assert load("cifar10", data_root=fake_cifar10).train.targets[::4].tolist() == [1, 2, 3, 4, 5]


def test_a_failed_download_says_how_to_get_cifar10(tmp_path, load, monkeypatch):
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # nothing listens there
    with pytest.raises(DownloadFailed) as caught:
        load("cifar10", data_root=tmp_path / "none")
    assert "cannot get CIFAR-10" in str(caught.value)
    assert "cifar-10-python.tar.gz" in str(caught.value)
    assert "mirror" in str(caught.value)
    assert "--data-root" in str(caught.value)


# ---- other sizes, and streaming


def test_images_of_another_size_are_brought_to_it_and_kept_beside(images, load, tmp_path):
    large, small = load(f"folder:{images}", image_size=48), load(f"folder:{images}")
    assert (large.shape.inputs, small.shape.inputs) == ((3, 48, 48), (3, 32, 32))
    file = list_files(images, IMAGES).train[0]
    plain = Image.open(file.path).convert("RGB").resize((48, 48), Image.Resampling.BILINEAR)
    assert np.array_equal(large.train.inputs[0].permute(1, 2, 0).numpy(), np.asarray(plain))
    assert len(list((tmp_path / "cache").iterdir())) == 2
    load(f"folder:{images}", image_size=48)
    assert load.said == []


def test_large_images_are_decoded_in_parts_of_the_same_memory(images, load, monkeypatch, tmp_path):
    parts = []
    monkeypatch.setattr(decode, "decode", lambda paths, side: parts.append(len(paths)) or _blank(paths, side))
    load(f"folder:{images}", image_size=256)
    assert parts == [8, 8, 8, 8, 4]


def _blank(paths, side):
    return np.zeros((len(paths), 3, side, side), np.uint8), []


def test_cifar10_and_digits_can_be_enlarged(fake_cifar10, load):
    assert load("cifar10", data_root=fake_cifar10, image_size=64).train.inputs.shape == (20, 3, 64, 64)
    assert load("digits", image_size=16).shape.inputs == (3, 16, 16)


def test_streamed_batches_are_the_same_bits_in_the_same_order(images, load):
    plain, streamed = load(f"folder:{images}"), load(f"folder:{images}", stream=True)
    picks = torch.randperm(30).split(7)
    both = [list(feed.batches(each.train, picks, CPU, stream=each is streamed)) for each in (plain, streamed)]
    assert len(both[0]) == len(both[1]) == 5
    for one, other in zip(*both, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_a_stream_reads_a_few_batches_ahead_and_no_more(images, load):
    split = load(f"folder:{images}", stream=True).train
    asked = []

    def picks():
        for at in range(30):
            asked.append(at)
            yield torch.tensor([at])

    batches = feed.batches(split, picks(), CPU, stream=True)
    next(batches)
    assert len(asked) == feed.AHEAD + 1
    batches.close()  # as a loop that stops in the middle: the thread ends


def test_what_goes_wrong_while_fetching_is_raised_where_the_batch_is_taken(images, load):
    split = load(f"folder:{images}", stream=True).train
    with pytest.raises(IndexError):
        list(feed.batches(split, [torch.tensor([3]), torch.tensor([30])], CPU, stream=True))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory of a process is told by /proc")
def test_streaming_holds_no_copy_of_the_data(load, tmp_path):
    """A text of 64 MB, all of it read: the process's own memory grows by less than half of that."""
    (tmp_path / "long.txt").write_bytes(bytes(range(256)) * (1 << 18))

    def own_memory():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

    before = own_memory()
    found = load(f"text:{tmp_path / 'long.txt'}", stream=True, context=1024)
    picks = torch.randperm(len(found.train)).split(64)
    read = sum(len(inputs) for inputs, _ in feed.batches(found.train, picks, CPU, stream=True))
    assert read == len(found.train) > 58_000
    assert own_memory() - before < 32_000_000


# ---- the registry


def test_each_data_set_has_its_name_in_the_configuration_and_its_file():
    assert set(data.SOURCES) == {*DATA, *PLACES}
    files = {path.stem for path in Path(data.__file__).parent.glob("*.py")}
    assert files - {"__init__", "feed"} == set(data.SOURCES)
