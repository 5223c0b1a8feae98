"""What an update of the trainer costs: time and memory, against the plain loop and against three networks."""
