"""CIFAR-10 by the five methods of the paper's Table 1, and by flow matching.

    python examples/cifar10.py --data-dir DIR --out out --preset fast

DIR is a folder of TensorFlow Datasets, or an `.npz` in the layout of Keras. Presets: `paper` (the paper's setting), `fast` (our
own for a GPU), `small` (small models for a CPU), `smoke` (minutes on a CPU, and no measurement). A run that was ended goes on
when the same command is given again. Writes `results.json`, `figure_3.png` and one folder with a checkpoint and metrics for
each method, and prints a Table-1 row.
"""

import _images

if __name__ == "__main__":
    _images.main("cifar10", "CIFAR-10")
