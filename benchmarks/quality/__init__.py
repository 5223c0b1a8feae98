"""The quality benchmark of the demo world: trains students, samples, scores, and prints the tables."""
