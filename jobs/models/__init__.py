"""What a model is: its file, its classes and input, its evaluation, and the dataset it belongs to."""
