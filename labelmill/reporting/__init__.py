"""The report: everything the ledger knows about a model, on one HTML page that needs no other file.

`facts` reads the data, `tables` and `charts` turn it into rows and diagrams, `page` renders the page.
"""
