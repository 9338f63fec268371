"""What is wrong with an output is told before any work is done."""

import pytest
from PIL import Image

from bayesq import files, zoo
from bayesq.cli import main
from bayesq.errors import OutputError
from bayesq.io import check_format, write_image

RESTORE = ["restore", "denoise", "{picture}", "--noise", "0.1"]
MISSING = ["-m", "nowhere.safetensors"]
CASES = [  # each with a second fault, which only the work would meet; first the path at fault
    ("{none}/x.png", [*RESTORE, "{none}/x.png", *MISSING]),
    ("{file}/x.png", [*RESTORE, "{file}/x.png", *MISSING]),
    ("{folder}", [*RESTORE, "{folder}", *MISSING]),
    ("{picture}", [*RESTORE, "{picture}", *MISSING]),
    ("{none}/s.png", [*RESTORE, "{out}", "--std", "{none}/s.png", *MISSING]),
    ("{out}.xyz", [*RESTORE, "{out}", "--std", "{out}.xyz", *MISSING]),
    ("{out}.jpg", [*RESTORE, "{out}.jpg", *MISSING]),
    ("{out}.xyz", [*RESTORE, "{out}.xyz", *MISSING]),
    ("{folder}", [*RESTORE, "{out}", "--realistic", "{folder}", *MISSING]),
    ("{out}.jpg", [*RESTORE, "{out}", "--realistic", "{out}.jpg", *MISSING]),
    ("{file}", [*RESTORE, "{out}", "--save-samples", "{file}", *MISSING]),
    ("{file}/deeper", [*RESTORE, "{out}", "--save-samples", "{file}/deeper", *MISSING]),
    ("{none}/r.html", ["report", "denoise", "{picture}", "{none}/r.html", *MISSING]),
    ("{picture}", ["report", "denoise", "{picture}", "{picture}", *MISSING]),
    ("{none}/x.png", ["degrade", "denoise", "{picture}", "{none}/x.png", "--noise", "loud"]),
    ("{picture}", ["degrade", "denoise", "{picture}", "{picture}", "--noise", "loud"]),
    ("{none}/x.bq", ["encode", "{picture}", "{none}/x.bq", *MISSING]),
    ("{picture}", ["encode", "{picture}", "{picture}", *MISSING]),
    ("{coded}", ["decode", "{coded}", "{coded}", *MISSING]),
    ("{coded}", ["decode", "{coded}", "{out}", "--std", "{coded}", *MISSING]),
    ("{picture}", ["decode", "{picture}", *MISSING]),
    ("{file}", ["decode", "{coded}", "{out}", "--save-samples", "{file}", *MISSING]),
    ("{folder}", ["decode", "{coded}", "{folder}", *MISSING]),
    ("{out}.jpg", ["decode", "{coded}", "{out}.jpg", *MISSING]),
    ("{out}.xyz", ["decode", "{coded}", "{out}", "--std", "{out}.xyz", *MISSING]),
    ("{none}/map.png", ["info", "{file}", "--map", "{none}/map.png"]),
    ("{file}", ["demo", "--out", "{file}", *MISSING]),
    ("{file}/run", ["train", "--data", "{none}", "--out", "{file}/run"]),
    ("{file}", ["quantize", "nowhere", "{file}"]),
    ("{none}/c.json", ["calibrate", "--data", "{folder}", "-o", "{none}/c.json"]),
    ("{none}/c.png", ["bench", "codec", "{folder}", "--plot", "{none}/c.png"]),
    ("{none}/c.json", ["bench", "quantize", "{folder}", "-o", "{none}/c.json"]),
    ("{none}/c.json", ["bench", "restore", "{folder}", "-o", "{none}/c.json"]),
    ("{file}", ["bench", "fuzz", "--keep", "{file}", *MISSING]),
]


@pytest.fixture
def places(tmp_path, small_codec_path):
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "folder").mkdir()
    picture = Image.new("RGBA", (48, 32))
    picture.save(tmp_path / "picture.png")
    (tmp_path / "coded.bq").write_bytes(files.encode(picture, zoo.shared(small_codec_path), 20))
    names = {"none": "none", "file": "text.txt", "folder": "folder", "picture": "picture.png", "coded": "coded.bq"}
    return {key: str(tmp_path / name) for key, name in {**names, "out": "out.png"}.items()}


@pytest.mark.parametrize(("blamed", "argv"), CASES)
def test_outputs_are_checked_first(blamed, argv, places, tmp_path, capsys):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([word.format(**places) for word in argv]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"bayesq: error: {blamed.format(**places)}: ") and message.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize(
    "suffix", [".avif", ".bmp", ".jpg", ".jp2", ".pgm", ".png", ".qoi", ".tif", ".webp", ".xyz", ""]
)
def test_formats_are_refused_before_as_when_written(mode, suffix, tmp_path):
    def refusal(act):
        try:
            act()
        except OutputError as error:
            return str(error)
        return None

    path = tmp_path / f"x{suffix}"
    written = refusal(lambda: write_image(Image.new(mode, (40, 30)), path))
    assert refusal(lambda: check_format(path, mode)) == written
    assert path.exists() == (written is None)
