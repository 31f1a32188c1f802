"""The ground that fits and trainings stand on: data, batches, processes, events and randomness."""
