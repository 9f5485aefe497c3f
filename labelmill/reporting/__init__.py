"""The report page: all that the ledger knows of a model, on one HTML page that needs nothing else.

`facts` gathers it, `tables` and `charts` bring it into rows and diagrams, `page` lays it out.
"""
