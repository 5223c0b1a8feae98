"""Train, sample, score and print: ``python -m benchmarks.quality``."""

import argparse
import logging
from concurrent.futures import ThreadPoolExecutor

from .students import runs
from .training import train


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    args = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda run: train(*run), runs()))


if __name__ == "__main__":
    main()
