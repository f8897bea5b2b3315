"""The miniature: a small VALL-E trained on synthetic speech; see README.md."""
