from .criterion import SetCriterion as SetCriterion
