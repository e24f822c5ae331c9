"""`python -m deepwell.demo`: trains a small GPT twice, in full precision and through Deepwell, and compares the two."""
