"""The pictures of README and docs, each drawn by one module; ``python -m benchmarks.pictures`` draws all."""
