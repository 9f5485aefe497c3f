"""The sending side: read sources, submit jobs, follow them, query and export their predictions."""
