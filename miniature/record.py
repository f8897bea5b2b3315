"""Speak a sentence with espeak-ng: python -m miniature.record "Good morning." plain OUT.flac."""

from __future__ import annotations

import argparse

import soundfile

from miniature import corpus


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split(":", 1)[0])
    arguments.add_argument("text")
    arguments.add_argument("voice", choices=corpus.VOICES)
    arguments.add_argument("out")
    given = arguments.parse_args()
    said = corpus.speak(given.text, given.voice)
    soundfile.write(given.out, said.samples, corpus.SAMPLE_RATE)


if __name__ == "__main__":
    main()
