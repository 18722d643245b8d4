"""From images to class maps: forward pass, scorers, predictors, evaluation, export."""
