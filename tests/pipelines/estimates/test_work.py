"""Work is counted on tensors that have no content, and layers by the difference of two."""

import torch
from torch import nn

from pipelines.estimates.work import Work, counted, measure, of_layers, operation


def test_a_product_counts_its_multiplications_and_what_it_reads_and_writes():
    def product() -> Work:
        a, b = torch.zeros(2, 3), torch.zeros(3, 5)
        return measure(lambda: a @ b)

    assert counted(product).operations == {(2 * 2 * 3 * 5, 4 * (6 + 15 + 10)): 1}


def test_a_view_moves_nothing_and_a_look_up_reads_no_more_than_it_gives():
    def look_up() -> Work:
        table = torch.zeros(1000, 4)
        return measure(lambda: table[torch.zeros(2, dtype=torch.long)].view(4, 2).t())

    work = counted(look_up)
    assert max(size for _, size in work.operations) == 2 * 4 * 8


def test_the_backward_of_a_loss_is_counted_too():
    def build(gradient: bool) -> Work:
        layer, x = nn.Linear(8, 8, bias=False).requires_grad_(gradient), torch.zeros(4, 8)
        return measure(lambda: layer(x).sum())

    assert counted(lambda: build(True)).flops == 2 * counted(lambda: build(False)).flops


def test_inference_mode_hides_no_product():
    @torch.inference_mode()
    def forward(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return layer(x)

    def build() -> Work:
        layer, x = nn.Linear(8, 8), torch.zeros(4, 8)
        return measure(lambda: forward(layer, x))

    assert counted(build).flops == 2 * 4 * 8 * 8


def test_many_layers_follow_from_one_and_two():
    def of(layers: int) -> Work:
        def build() -> Work:
            network, x = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)), nn.Linear(8, 2)), torch.zeros(4, 8)
            return measure(lambda: network(x).sum())

        return counted(build)

    guessed, whole = of_layers(of, 5), of(5)
    assert {name: count for name, count in guessed.operations.items() if count} == whole.operations


def test_work_adds_up():
    work = operation(2, 3) * 4 + operation(2, 3) + operation(5, 7)
    assert work.operations == {(2, 3): 5, (5, 7): 1}
    assert (work.flops, work.bytes, work.count) == (15, 22, 6)
