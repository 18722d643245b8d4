"""From images to class maps: networks, scorers, predictors, evaluation and export."""
