"""HTML pages that need no other file: about a model, a dataset, a labelled job, and the images to review.

Of the report about a model, `report_data` reads what is shown, `report_rows` and `charts` turn it into rows
and diagrams, and `model_page` renders the page.
"""
