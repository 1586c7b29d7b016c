"""Text from language models: sampling, one pure function, and what is convenient around it."""

from kdjax.generation.generate import Generation as Generation
from kdjax.generation.generate import generate as generate
from kdjax.generation.generator import Generator as Generator
from kdjax.generation.sampling import GREEDY as GREEDY
from kdjax.generation.sampling import Sampling as Sampling
from kdjax.generation.text import generate_text as generate_text
