"""The scripts that made every file under demo/data and demo/models; none of them runs in `make demo`."""
