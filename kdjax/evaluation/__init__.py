"""Metrics and what can be said about them."""

from kdjax.evaluation.attention import attention_similarity as attention_similarity
from kdjax.evaluation.calibration import temperature_scale as temperature_scale
from kdjax.evaluation.calibration import top_k_temperature as top_k_temperature
from kdjax.evaluation.classification import agreement as agreement
from kdjax.evaluation.classification import classification as classification
from kdjax.evaluation.classification import finalize as finalize
from kdjax.evaluation.classification import merge as merge
from kdjax.evaluation.classification import top_k_accuracy as top_k_accuracy
from kdjax.evaluation.corruption import corruption_errors as corruption_errors
from kdjax.evaluation.corruption import mean_corruption_error as mean_corruption_error
from kdjax.evaluation.held_out import base_and_novel as base_and_novel
from kdjax.evaluation.held_out import harmonic_mean as harmonic_mean
from kdjax.evaluation.held_out import retrieved as retrieved
from kdjax.evaluation.loyalty import probability_loyalty as probability_loyalty
from kdjax.evaluation.loyalty import regression_loyalty as regression_loyalty
from kdjax.evaluation.segmentation import intersection_over_union as intersection_over_union
from kdjax.evaluation.similarity import batch_cka as batch_cka
from kdjax.evaluation.similarity import linear_cka as linear_cka
from kdjax.evaluation.statistics import paired_comparison as paired_comparison
from kdjax.evaluation.statistics import verdict as verdict
