"""Data: sources, labels, augmentations, batches. `__all__` holds what a config may name."""

from kdjax.data import augment as augment
from kdjax.data.array_record import array_record_images
from kdjax.data.array_record import write_array_records as write_array_records
from kdjax.data.base import ArraySource as ArraySource
from kdjax.data.base import DataSet as DataSet
from kdjax.data.base import Source as Source
from kdjax.data.base import Span as Span
from kdjax.data.base import arrays as arrays
from kdjax.data.bundled import digits
from kdjax.data.classes import some_classes
from kdjax.data.corrupted import corrupted
from kdjax.data.driving import Trips as Trips
from kdjax.data.driving import driving
from kdjax.data.idx import fashion_mnist, idx_images
from kdjax.data.labels import hide_labels as hide_labels
from kdjax.data.labels import labelled_only as labelled_only
from kdjax.data.labels import split_off as split_off
from kdjax.data.labels import subset as subset
from kdjax.data.named import named_classes
from kdjax.data.pipeline import evaluation_batches as evaluation_batches
from kdjax.data.pipeline import paired_stream as paired_stream
from kdjax.data.pipeline import training_stream as training_stream
from kdjax.data.scenes import scenes
from kdjax.data.text import ClassifiedText as ClassifiedText
from kdjax.data.text import PackedRows as PackedRows
from kdjax.data.text import TextData as TextData
from kdjax.data.text import TextPairs as TextPairs
from kdjax.data.text import labelled_text, library_docs, text, text_pairs
from kdjax.data.tfds import tfds_images
from kdjax.data.tokenizers import load_tokenizer as load_tokenizer

__all__ = [
  "array_record_images",
  "corrupted",
  "digits",
  "driving",
  "fashion_mnist",
  "idx_images",
  "labelled_text",
  "library_docs",
  "named_classes",
  "scenes",
  "some_classes",
  "text",
  "text_pairs",
  "tfds_images",
]
