"""What owns a model: workers take chunks of pairs, score them and commit the tables themselves."""
