"""Plan, schedule, commit and account for a sweep on Ray actors.

``prepare`` checks a request, ``driver`` runs it, ``scheduler`` decides without Ray, ``pool`` talks to Ray, ``status``
reads files alone, ``verify`` prepares the measurement of a sample.
"""
