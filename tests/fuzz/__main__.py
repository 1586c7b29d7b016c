"""Fuzzing of one reader, guided by coverage.

  pip install -e '.[fuzz]'
  python -m tests.fuzz gguf -max_total_time=600

What follows the reader's name is for libFuzzer. A file that makes the reader fail in another way
than with KdjaxError, or take more than 512 MB or ten seconds, is written to the current folder,
and the command ends with a status that is not 0. The log's last line has the number of files tried.
"""

import sys
import tempfile
from pathlib import Path

LIMITS = ("-rss_limit_mb=3000", "-malloc_limit_mb=512", "-timeout=10", "-max_len=65536")
TRACED = ("kdjax", "gguf", "json")


def main() -> None:
  import atheris

  with atheris.instrument_imports(include=list(TRACED)):
    from tests.fuzz.readers import READERS, refuse
  if len(sys.argv) < 2 or sys.argv[1] not in READERS:
    sys.exit(f"name one of {', '.join(READERS)}, and options of libFuzzer behind it")
  name = sys.argv.pop(1)
  with tempfile.TemporaryDirectory() as folder:
    work, corpus = Path(folder) / "work", Path(folder) / "corpus"
    work.mkdir()
    corpus.mkdir()
    reader = READERS[name](work)
    for number, seed in enumerate(reader.seeds):
      (corpus / str(number)).write_bytes(seed)
    arguments = [sys.argv[0], *LIMITS, *sys.argv[1:], str(corpus)]
    atheris.Setup(arguments, lambda content: refuse(reader, content) and None)
    atheris.Fuzz()


if __name__ == "__main__":
  main()
