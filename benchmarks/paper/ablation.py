"""Section 5.2 of the paper: what its parts bring, CIFAR-10 with ResNet-56. Test error %, the paper's beside ours.

    torchrun --nproc-per-node 8 benchmarks/paper/ablation.py --data ROOT --compile --workers 8
    python benchmarks/paper/ablation.py                     # the table alone

ROOT and protocol are those of table1.py, row "CIFAR-10, 100 %". "Parallel" is the paper's method, of 128 units of tau.
"""

from runner import HEURISTIC, PAPER, UNTRAINED, Arm, main
from table1 import ROWS as TABLE_1

ROWS = [row for row in TABLE_1 if row.name == "CIFAR-10, 100 %"]
ARMS = {
    "heuristic": HEURISTIC,
    "untrained": UNTRAINED,
    "pretrained": Arm(networks="pretrained"),
    "spatial only": Arm(networks="fitted", config=(("variant", "spatial"),)),
    "appearance only": Arm(networks="fitted", config=(("variant", "appearance"),)),
    "serial": Arm(networks="fitted", config=(("variant", "serial"),)),
    "parallel": PAPER,
    **{f"tau of {size}": Arm(networks="fitted", config=(("tau_dim", size),)) for size in (32, 64, 256)},
}

if __name__ == "__main__":
    main(__doc__, ROWS, ARMS)
