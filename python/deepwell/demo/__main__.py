"""Entry of `python -m deepwell.demo`: makes sure that what the demo imports is there before it imports it."""

import importlib.util
import sys

NEEDED = ("torch", "numpy", "rich", "jinja2")


def main() -> int:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        print(
            f"deepwell.demo: needs {', '.join(missing)}; run `{sys.executable} -m pip install {names}`", file=sys.stderr
        )
        return 1
    try:
        from .cli import run

        return run(sys.argv[1:])
    except KeyboardInterrupt:  # while PyTorch was being imported; afterwards `run` sees to it
        print("deepwell.demo: interrupted; no report written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
