"""What the tests of text share: a tokenizer on the disk, and a cache that the tests own."""

import pytest

from tests.data.text.helpers import bytes_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tokenizer")
  bytes_tokenizer().save_pretrained(folder)
  return str(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  folder = tmp_path / "cache"
  monkeypatch.setenv("KDJAX_CACHE", str(folder))
  return folder
