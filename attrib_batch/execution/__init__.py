"""Plan a sweep, schedule it over workers, commit what they compute, and account for every pair."""
