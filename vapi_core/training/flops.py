"""What an objective computes: floating-point operations of one image, counted once and not at each step."""

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vapi_core.distributed import rank, world_size
from vapi_core.training.loop import Objective, OptimizationConfig, micro_batches, parts_of


def flops_per_image(
    module: nn.Module, objective: Objective, config: OptimizationConfig, count: int, seed: int
) -> float:
    """Operations (a multiply-add is 2) of forward, rollouts, rewards and backward, per image of the batch.

    Runs the first micro-batch of step 0 and drops its gradients; nothing random is used up, since every draw has its
    stream. Counted are matrix products, convolutions and attention, as `torch.utils.flop_counter` does.
    """
    batch = micro_batches(seed, 0, config, count, rank(), world_size())[0]
    with FlopCounterMode(display=False) as counter:
        for part in parts_of(objective, batch):
            loss, _ = part.loss()
            loss.backward()
    module.zero_grad(set_to_none=True)
    return counter.get_total_flops() / len(batch.items)
