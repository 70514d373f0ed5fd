from __future__ import annotations

import gzip
import hashlib
import io
import urllib.error
import urllib.request
from pathlib import Path
from types import MappingProxyType

import pytest

from fedpriv.data import registry
from fedpriv.data.download import download
from fedpriv.data.registry import (
    Dataset,
    RegistryFile,
    cached_bytes,
    datasets,
    find_file,
    verified_bytes,
    verified_path,
)
from fedpriv.errors import InputError

CONTENT = b"time,a\n2024-01-01 00:00,1\n" * 200


def entry(name="x.csv", url="https://example.org/x.csv", content=CONTENT, packed=b"") -> RegistryFile:
    return RegistryFile(
        name,
        url,
        hashlib.sha256(content).hexdigest(),
        len(content),
        hashlib.sha256(packed).hexdigest() if packed else "",
        len(packed),
    )


@pytest.fixture
def toy(monkeypatch):
    """A registry with one data set in two forms: a joined file without address, and two files with one."""
    forms = {"joined": (entry("joined.csv", url=""),), "apart": (entry("a.csv"), entry("b.csv"))}
    known = Dataset("toy", "t", "https://example.org", "CC0", "c", "MW", MappingProxyType(forms), MappingProxyType({}))
    monkeypatch.setattr(registry, "datasets", lambda: {"toy": known})
    return known


@pytest.fixture
def web(monkeypatch):
    """The network: serves CONTENT and counts; set `web.body` or `web.error` to change that."""

    class Web:
        body: bytes = CONTENT
        error: Exception | None = None
        asked: list[str]

    web = Web()
    web.asked = []

    def opened(url, timeout):
        web.asked.append(url)
        if web.error:
            raise web.error
        return io.BytesIO(web.body)

    monkeypatch.setattr(urllib.request, "urlopen", opened)
    return web


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def test_the_packaged_registry_is_complete():
    known = datasets()
    assert set(known) == {"ett", "pjm", "eia930", "sgsc10"}
    for data in known.values():
        assert data.licence and data.citation and data.homepage.startswith("https://") and data.unit
        for files in data.forms.values():
            for file in files:
                assert len(file.sha256) == 64 and file.size > 0
                assert not file.url or file.url.endswith("/" + file.name)
    assert [d.downloadable for d in known.values()] == [True, True, True, False]
    assert len(known["eia930"].forms["entities"]) == len(known["eia930"].regions) == 119
    with pytest.raises(InputError, match="known are ett"):
        registry.dataset("etth")


def test_verified_bytes_of_plain_and_gzip(tmp_path):
    packed = gzip.compress(CONTENT, mtime=0)
    (tmp_path / "x.csv").write_bytes(CONTENT)
    (tmp_path / "x.csv.gz").write_bytes(packed)
    assert verified_bytes(tmp_path / "x.csv", entry()) == CONTENT
    assert verified_bytes(tmp_path / "x.csv.gz", entry(packed=packed)) == CONTENT
    # compressed by somebody else: the content is what counts
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(CONTENT, 1))
    assert verified_bytes(tmp_path / "x.csv.gz", entry(packed=packed)) == CONTENT
    assert verified_path(tmp_path / "x.csv", entry()) == tmp_path / "x.csv"


@pytest.mark.parametrize("content", [CONTENT + b"2024-01-02 00:00,1\n", CONTENT[:-2] + b"9\n", b""])
@pytest.mark.parametrize("packed", [False, True])
def test_wrong_checksum(tmp_path, content, packed):
    path = tmp_path / ("x.csv.gz" if packed else "x.csv")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError, match="wrong checksum"):
        verified_bytes(path, entry())
    with pytest.raises(InputError, match="wrong checksum"):
        verified_path(path, entry())


def test_truncated_or_missing_file(tmp_path):
    packed = gzip.compress(CONTENT)
    for cut in (5, len(packed) // 2, len(packed) - 4):
        (tmp_path / "x.csv.gz").write_bytes(packed[:cut])
        with pytest.raises(InputError, match="truncated or damaged gzip"):
            verified_bytes(tmp_path / "x.csv.gz", entry(packed=packed))
    with pytest.raises(InputError, match="cannot be read"):
        verified_bytes(tmp_path / "y.csv", entry())
    with pytest.raises(InputError, match="cannot be read"):
        verified_path(tmp_path / "y.csv", entry())


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(bytes(50_000_000)))
    with pytest.raises(InputError, match="wrong checksum"):
        verified_bytes(tmp_path / "x.csv.gz", entry())


def test_a_changed_file_is_verified_anew(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(CONTENT)
    assert cached_bytes(path, entry()) is cached_bytes(path, entry())
    verified_path(path, entry())
    path.write_bytes(CONTENT + b"more")
    with pytest.raises(InputError, match="wrong checksum"):
        cached_bytes(path, entry())
    with pytest.raises(InputError, match="wrong checksum"):
        verified_path(path, entry())


def test_where_files_are_looked_for(tmp_path):
    assert find_file("toy", "x.csv", tmp_path) is None
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "x.csv.gz").touch()
    assert find_file("toy", "x.csv", tmp_path) == tmp_path / "toy" / "x.csv.gz"
    (tmp_path / "x.csv").touch()
    assert find_file("toy", "x.csv", tmp_path) == tmp_path / "x.csv"
    with pytest.raises(InputError, match="fedpriv data download toy"):
        registry.require_file("toy", "y.csv", tmp_path)


def test_data_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("FEDPRIV_DATA_DIR", raising=False)
    with pytest.raises(InputError, match=r"set data\.dir=DIR or FEDPRIV_DATA_DIR"):
        registry.data_directory("")
    monkeypatch.setenv("FEDPRIV_DATA_DIR", str(tmp_path))
    assert registry.data_directory("") == tmp_path
    with pytest.raises(InputError, match="is not a directory"):
        registry.data_directory(str(tmp_path / "none"))


def test_download(toy, web, tmp_path):
    seen = []
    paths = download("toy", tmp_path / "d", progress=lambda *step: seen.append(step))
    assert [p.name for p in paths] == ["a.csv", "b.csv"] == names(tmp_path / "d")
    assert all(p.read_bytes() == CONTENT for p in paths)
    assert seen[-1] == ("b.csv", len(CONTENT), len(CONTENT)) and len(web.asked) == 2
    download("toy", tmp_path / "d")
    assert len(web.asked) == 2  # what is there and right is not fetched again
    paths[0].write_bytes(b"damaged")
    download("toy", tmp_path / "d")
    assert len(web.asked) == 3 and paths[0].read_bytes() == CONTENT
    assert download("toy", tmp_path / "e", files=["b.csv"]) == [tmp_path / "e" / "b.csv"]


@pytest.mark.parametrize(
    ("body", "message"),
    [(CONTENT[:-1] + b"x", "wrong checksum"), (CONTENT + b"x", "longer than"), (CONTENT[:-1], "ended after")],
)
def test_a_bad_download_leaves_nothing(toy, web, tmp_path, body, message):
    web.body = body
    with pytest.raises(InputError, match=message):
        download("toy", tmp_path / "d")
    assert names(tmp_path / "d") == []


def test_no_network(toy, web, tmp_path):
    web.error = urllib.error.URLError("no route")
    with pytest.raises(InputError, match=r"cannot be fetched \(no route\).*--offline"):
        download("toy", tmp_path / "d")
    assert names(tmp_path / "d") == []


def test_offline(toy, web, tmp_path):
    (tmp_path / "src" / "toy").mkdir(parents=True)
    (tmp_path / "src" / "toy" / "joined.csv.gz").write_bytes(gzip.compress(CONTENT))
    (path,) = download("toy", tmp_path / "d", offline_dir=tmp_path / "src")
    assert path.name == "joined.csv.gz" and gzip.decompress(path.read_bytes()) == CONTENT and web.asked == []
    (tmp_path / "src" / "toy" / "joined.csv.gz").write_bytes(gzip.compress(b"another"))
    with pytest.raises(InputError, match="wrong checksum"):
        download("toy", tmp_path / "e", offline_dir=tmp_path / "src")
    assert names(tmp_path / "e") == []


def test_what_cannot_be_downloaded(toy, web, tmp_path):
    with pytest.raises(InputError, match="no public address"):
        download("toy", tmp_path, files=["joined.csv"])
    with pytest.raises(InputError, match=r"has no file 'c\.csv'; it has joined\.csv"):
        download("toy", tmp_path, files=["c.csv"])
    with pytest.raises(InputError, match=r"lacks joined\.csv"):
        download("toy", tmp_path / "d", offline_dir=tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        download("toy", tmp_path, offline_dir=tmp_path / "none")
    with pytest.raises(InputError, match="unknown data set"):
        download("tie", tmp_path)
    assert web.asked == []
