"""People's labels: correct, review, and evaluate labelled jobs."""
