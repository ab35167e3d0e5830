"""How fast a folder of images becomes the trainer's cache, against Pillow's one picture after the other.

    python benchmarks/folder_cache.py PATH      PATH: images by class, in train/ and test/ ($CIFAR10_JPEG if not given)

Both sides are processes of their own, run in turns, after a round that only warms the disk's cache. Pillow's lists the
folder, opens each file, makes it RGB and puts it into an array in memory; the trainer's lists it with sizes and dates,
decodes on all cores, and writes the memory-mapped cache. Imports aren't counted, the trainer's workers are, from their
start. Prints the ratio of each round by the clock and by CPU time, of all processes, and in the middle. Goal: 2 by the
clock. Without a path the images are scikit-learn's digits, many times over. Pixels are compared in each round.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from accuracy import measure

Images = np.ndarray
COPIES = 12  # of the 1,797 digits: 21,564 files


def plain_loop(root: str, size: int) -> Callable[[], Images]:
    """Pillow, one by one."""
    from PIL import Image

    def read() -> Images:
        paths = [os.path.join(folder, name) for folder, _, names in sorted(os.walk(root)) for name in sorted(names)]
        images = np.empty((len(paths), size, size, 3), np.uint8)
        for at, path in enumerate(paths):
            images[at] = np.asarray(Image.open(path).convert("RGB"))
        return images.transpose(0, 3, 1, 2)

    return read


def our_cache(root: str, size: int) -> Callable[[], Images]:
    """The trainer, into a cache of its own."""
    from trainer.config import configure
    from trainer.data import folder

    config, cache = configure({"data": f"folder:{root}", "image_size": size}), tempfile.TemporaryDirectory()
    return lambda: folder.read(config, Path(cache.name), lambda line: None).inputs


def timed(read: Callable[[], Images]) -> None:
    """Print how many there are, a sum of what is in them in any order, seconds by the clock and of CPU time."""
    started, cpu_started = time.perf_counter(), cpu_s()
    images = read()
    seconds, cpu_seconds = time.perf_counter() - started, cpu_s() - cpu_started
    print(json.dumps([len(images), sum(zlib.crc32(image.tobytes()) for image in images), seconds, cpu_seconds]))


def cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def write_digits(folder: Path) -> None:
    """scikit-learn's digits as JPEG files, many times over, by class."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for part in ("train", "test"):
        for name in range(10):
            (folder / part / str(name)).mkdir(parents=True)
    for at, (scan, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        grey = Image.fromarray((scan * 255 / 16).astype(np.uint8)).resize((32, 32), Image.Resampling.BILINEAR)
        for copy in range(COPIES):
            part = "test" if copy == 0 else "train"
            grey.convert("RGB").save(folder / part / str(label) / f"{at}-{copy}.jpg", quality=95)


def main() -> None:
    """Compare, a line a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", default=os.environ.get("CIFAR10_JPEG", ""))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=32, help="of each picture's sides, in pixels")
    parser.add_argument("--side", choices=("plain", "trainer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        timed((our_cache if options.side == "trainer" else plain_loop)(**json.loads(options.path)))
        return
    with tempfile.TemporaryDirectory() as made:
        if not options.path:
            write_digits(Path(made))
        arguments = {"root": str(Path(options.path or made).resolve()), "size": options.size}
        measure("plain", arguments, __file__)  # the disk's cache
        print("seconds: Pillow, trainer       CPU seconds: Pillow, trainer")
        ratios, cpu_ratios = [], []
        for _ in range(options.rounds):
            count, pixels, plain, plain_cpu = measure("plain", arguments, __file__)
            ours_count, ours_pixels, ours, ours_cpu = measure("trainer", arguments, __file__)
            if (count, pixels) != (ours_count, ours_pixels):
                sys.exit("the two have read other pixels")
            ratios.append(plain / ours)
            cpu_ratios.append(plain_cpu / ours_cpu)
            print(
                f"{plain:>9.2f} {ours:>8.2f}  {ratios[-1]:.2f} x    "
                f"{plain_cpu:>13.2f} {ours_cpu:>8.2f}  {cpu_ratios[-1]:.2f} x",
                flush=True,
            )
    print(
        f"{count:,} images, Pillow / trainer, median: {statistics.median(ratios):.2f} x by the clock (goal: 2 x), "
        f"{statistics.median(cpu_ratios):.2f} x by CPU time"
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
