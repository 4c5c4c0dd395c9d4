"""Moments, standard errors, intervals and stability: from committed chunks to what is known of a mean."""
