"""`app`, and `python -m app`: loads the commands, and runs the one that is asked for."""

from app.loading import loading


def main() -> None:
    with loading():
        from app.cli import main as run
    run()


if __name__ == "__main__":
    main()
