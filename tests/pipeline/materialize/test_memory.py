"""The memory of a render does not grow with the shard."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.children import run_python

PEAKS = """
    import io, sys
    from pathlib import Path

    from PIL import Image
    from skimage import data

    from pipeline.materialize.run import render
    from pipeline.recipe import parse_recipe
    from pipeline.shards.writing import TarWriter

    def peak():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

    folder, form = Path(sys.argv[1]), sys.argv[2]
    photo = io.BytesIO()
    Image.fromarray(data.chelsea()[100:200, 100:200]).save(photo, "jpeg")
    for samples in (60, 60, 600):  # the first also loads what is loaded once
        (folder / "in").mkdir(exist_ok=True)
        with open(folder / "in" / f"{samples}.tar", "wb") as file:
            tar = TarWriter(file)
            for n in range(samples):
                tar.add(f"{n}.jpg", photo.getvalue())
            tar.finish()
        recipe = {
            "name": "memory",
            "seed": 0,
            "corpus": {"shards": str(folder / "in" / f"{samples}.tar")},
            "image": {"size": 128},
            "tasks": {"rotation": {}, "jigsaw": {}, "occlusion": {}, "colorization": {}},
            "render": {"format": form, "image": "npy" if form == "webdataset" else None},
        }
        report = render(parse_recipe(recipe), str(folder / f"out-{samples}"), here=True)
        assert report.pairs == samples
        print(peak())
    print(sum(path.stat().st_size for path in (folder / "out-600").iterdir()) / 2**20)
"""


@pytest.mark.parametrize("form", ["webdataset", pytest.param("parquet", marks=pytest.mark.slow)])
def test_a_shard_of_ten_times_the_samples_takes_no_more_memory(tmp_path: Path, form: str) -> None:
    done = run_python(PEAKS, str(tmp_path), form)
    assert done.returncode == 0, done.stderr
    _, small, large, written = map(float, done.stdout.split())
    assert written > 90 or form == "parquet"  # which is compressed
    assert large - small < 50, "MB; the pixels of the larger shard's pairs alone are 126"
