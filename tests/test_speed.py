"""Guards against a slow augmenter: its time beside that of a policy of torchvision, and what it calls for boxes."""

import statistics
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2

from learned_aug import Augmenter, AugmenterConfig
from learned_aug.functional import warp_boxes

# An image of 32 px takes a third to a half of the policy's time. Beyond this something has become several times slower:
# the processes that share a machine slow both, and the median leaves out the rounds in which they slow only one.
MOST = 1.5
ROUNDS = 15


def test_a_batch_is_augmented_in_less_than_one_and_a_half_times_the_time_of_trivial_augment():
    augmenter = Augmenter(AugmenterConfig(), generator=torch.Generator().manual_seed(0))
    images = torch.rand(256, 3, 32, 32)
    augmenter.calibrate_(images[:32])
    policy = v2.TrivialAugmentWide()
    pictures = [v2.functional.to_pil_image(image) for image in images[:128]]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ratios = []
        for _ in range(ROUNDS + 1):
            start = time.process_time()
            augmenter(images)
            middle = time.process_time()
            for picture in pictures:
                policy(picture)
            end = time.process_time()
            ratios.append((middle - start) / len(images) * len(pictures) / (end - middle))
    finally:
        torch.set_num_threads(threads)
    ratio = statistics.median(ratios[1:])  # the first warms up
    assert ratio < MOST, f"an image takes {ratio:.2f} times as long as with TrivialAugmentWide, at most {MOST} expected"


class Calls(TorchDispatchMode):
    """Counts the operators that torch calls."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_boxes_through_a_mild_flow_take_at_most_a_hundred_and_thirty_calls():
    # A call takes longer than what it does to the points of twenty boxes.
    generator = torch.Generator().manual_seed(0)
    flow = torch.randn(1, 2, 4, 4, generator=generator)
    corner, side = torch.rand(2, 20, 2, generator=generator) * 32
    boxes = torch.cat([corner, corner + side], 1)[None]
    warp_boxes(boxes, flow, (64, 64), smooth=True)  # the constants are made once
    with Calls() as calls:
        warp_boxes(boxes, flow, (64, 64), smooth=True)
    assert calls.count <= 130
