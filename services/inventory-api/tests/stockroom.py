class Stockroom:
    n: int = 1
