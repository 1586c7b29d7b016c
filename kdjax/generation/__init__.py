"""Text from language models: sampling, one pure function, and what is convenient around it."""

from kdjax.generation.emulation import emulated as emulated
from kdjax.generation.emulation import emulated_logits as emulated_logits
from kdjax.generation.emulation import emulated_variables as emulated_variables
from kdjax.generation.generate import Generation as Generation
from kdjax.generation.generate import generate as generate
from kdjax.generation.generator import Generator as Generator
from kdjax.generation.sampling import GREEDY as GREEDY
from kdjax.generation.sampling import Sampling as Sampling
from kdjax.generation.speculative import speculate as speculate
from kdjax.generation.text import generate_text as generate_text
