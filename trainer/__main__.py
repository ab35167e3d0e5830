"""`python -m trainer`. Decoding workers import this file too, so it imports nothing until it is the program."""

if __name__ == "__main__":
    import os
    import signal
    import sys

    if own := signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))  # nothing is in hand yet

    from trainer.cli import main

    if own:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
