"""``python -m baichuan2_tpu``: the command line under the interpreter's name."""

from baichuan2_tpu.cli import main

if __name__ == "__main__":
    main()
