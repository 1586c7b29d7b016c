"""Text: documents to tokens, examples and packed rows."""

from kdjax.data.text.classes import ClassifiedText as ClassifiedText
from kdjax.data.text.classes import labelled_text as labelled_text
from kdjax.data.text.classes import library_docs as library_docs
from kdjax.data.text.dataset import TextData as TextData
from kdjax.data.text.dataset import Vocabulary as Vocabulary
from kdjax.data.text.dataset import text as text
from kdjax.data.text.packing import PackedRows as PackedRows
from kdjax.data.text.pairs import PairRows as PairRows
from kdjax.data.text.pairs import TextPairs as TextPairs
from kdjax.data.text.pairs import text_pairs as text_pairs
