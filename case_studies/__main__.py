"""`python -m case_studies VERB`, the same as `circuits VERB`: what torchrun can start."""

from case_studies.cli import main

if __name__ == "__main__":
    main()
