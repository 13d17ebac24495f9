"""In which order the stages of a pipeline take their micro-batches forward and backward."""

from typing import Literal, NamedTuple

PipelineOrder = Literal["1f1b", "gpipe"]
ORDERS: tuple[PipelineOrder, ...] = ("1f1b", "gpipe")


class Action(NamedTuple):
    """One micro-batch through one stage.

    Attributes:
        backward: whether it is the gradients that go through.
        number: of the micro-batch.
    """

    backward: bool
    number: int


def actions(order: PipelineOrder, stage: int, stages: int, micro_batches: int) -> list[Action]:
    """What a stage does with one batch, in order.

    ``gpipe`` takes all micro-batches forward before the first goes backward. ``1f1b`` takes as
    many forward as there are stages behind, then one forward and one backward in turn, so that it
    never holds the activations of more than ``stages - stage`` of them. Both take equally long.

    Source: Huang et al., GPipe, NeurIPS 2019; Narayanan et al., PipeDream, SOSP 2019 (1F1B).

    Args:
        order: ``1f1b`` or ``gpipe``.
        stage: from 0.
        stages: how many there are.
        micro_batches: how many the batch was divided into.
    """
    forward = [Action(False, number) for number in range(micro_batches)]
    backward = [Action(True, number) for number in range(micro_batches)]
    ahead = micro_batches if order == "gpipe" else min(stages - stage - 1, micro_batches)
    in_turn = [each for pair in zip(forward[ahead:], backward, strict=False) for each in pair]
    return [*forward[:ahead], *in_turn, *backward[micro_batches - ahead :]]


def bubble(stages: int, micro_batches: int) -> float:
    """The share of its time that each of equal stages stands idle, whichever the schedule."""
    return (stages - 1) / (micro_batches + stages - 1)
