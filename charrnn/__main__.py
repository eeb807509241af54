"""`python -m charrnn`, the same as the `charrnn` command."""

from charrnn.cli.main import main

if __name__ == "__main__":
    main()
