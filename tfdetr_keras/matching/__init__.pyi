from .assignment import linear_sum_assignment as linear_sum_assignment
from .matcher import match as match
from .matcher import matching_cost as matching_cost
