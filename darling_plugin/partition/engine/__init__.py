"""Token ids -> scores: what the models of `models/` that run a network have in common."""
