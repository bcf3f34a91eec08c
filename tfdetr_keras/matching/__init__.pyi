from .assignment import linear_sum_assignment as linear_sum_assignment
from .classification import Classification as Classification
from .classification import Focal as Focal
from .classification import MatchabilityAware as MatchabilityAware
from .classification import Softmax as Softmax
from .matcher import match as match
from .matcher import matching_cost as matching_cost
