"""Jobs in the ledger: submission, claims, results, control, shadows, and what people ask about them."""
