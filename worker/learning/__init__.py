"""From MNIST to a better champion: data, training, evaluation, promotion."""
