"""`python -m trainer`. Decoding workers import this file too, so it imports nothing until it is the program."""

if __name__ == "__main__":
    import sys

    from trainer.cli import main

    sys.exit(main())
