"""The pages: what people see of jobs and models in a browser, and change with one click or key.

Each page reads and changes with the functions of the HTTP API, so there is no second way to do anything. A
page is one file here and the template beside it. Templates work without scripts; `static/` adds what is live.
"""
