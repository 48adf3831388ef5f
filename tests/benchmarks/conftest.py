import sys
from pathlib import Path

# The benchmarks are no installed package.
sys.path.append(str(Path(__file__).parents[2]))
