from .criterion import SetCriterion as SetCriterion
from .denoising import DenoisingQueries as DenoisingQueries
from .denoising import denoising_queries as denoising_queries
from .fine_grained_criterion import FineGrainedCriterion as FineGrainedCriterion
