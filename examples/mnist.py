"""MNIST by the five methods of the paper's Table 1, and by flow matching.

    python examples/mnist.py --data-dir DIR --out out

DIR is a folder of TensorFlow Datasets, or an `.npz` in the layout of Keras. Presets: `small` (the default: small models for a
CPU, minutes a method), `paper` (the paper's setting), `fast` (our own for a GPU), `smoke` (no measurement). A run that was
ended goes on when the same command is given again. Writes `results.json`, `figure_3.png` and one folder with a checkpoint and
metrics for each method, and prints a Table-1 row.
"""

import _images

if __name__ == "__main__":
    _images.main("mnist", "MNIST", preset="small")
