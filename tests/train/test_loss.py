import numpy as np
import pytest
import torch
from torch.nn import functional as F

from drivetrain.train import BinaryCrossEntropy, CrossEntropy, Listwise, MeanSquaredError

Y = torch.tensor([0, 1, 1, 0, 1])


def test_binary_cross_entropy_is_the_log_loss_of_its_predictions() -> None:
    loss, logits = BinaryCrossEntropy("y"), torch.tensor([-1.0, 2.0, 0.5, 3.0, -0.1])
    p = loss.predictions(logits)["y"]
    expected = -torch.where(Y == 1, p, 1 - p).log().mean()
    torch.testing.assert_close(loss(logits, {"y": Y}), expected)
    torch.testing.assert_close(loss.scores(logits, {"y": Y})["loss"], expected.double())


def test_members_are_averaged_as_losses_in_training_and_as_probabilities_after() -> None:
    loss, logits = BinaryCrossEntropy("y"), torch.randn(5, 3, generator=torch.manual_seed(0))
    each = [loss(logits[:, k], {"y": Y}) for k in range(3)]
    torch.testing.assert_close(loss(logits, {"y": Y}), torch.stack(each).mean())
    p = logits.sigmoid().mean(1)
    torch.testing.assert_close(loss.predictions(logits)["y"], p)
    served = F.binary_cross_entropy(p, Y.float())
    torch.testing.assert_close(loss.scores(logits, {"y": Y})["loss"].float(), served)


@pytest.mark.parametrize(
    ("loss", "known", "unknown"),
    [
        (BinaryCrossEntropy("y"), [0, 1], [[1, 2], [0, -1]]),
        (BinaryCrossEntropy("y"), [0.0, 0.3, 1.0], [[0.5, 1.5]]),
        (CrossEntropy("y"), [0, 3, 1], [[0, -1], [0, -100]]),
        (CrossEntropy("y"), [0.0, 2.0], [[0.0, 0.5]]),
    ],
)
def test_labels_are_held_against_what_the_loss_knows(
    loss: BinaryCrossEntropy | CrossEntropy, known: list[float], unknown: list[list[float]]
) -> None:
    loss.check({"y": np.array(known)})
    for labels in unknown:
        with pytest.raises(ValueError, match=f"target 'y', row 1 of a batch: found {labels[1]},"):
            loss.check({"y": np.array(labels)})


def test_smoothing_moves_labels_to_the_middle() -> None:
    logits = torch.tensor([0.3, -2.0, 1.0, 0.0, 5.0])
    found = BinaryCrossEntropy("y", smoothing=0.2)(logits, {"y": Y})
    expected = F.binary_cross_entropy_with_logits(logits, Y * 0.8 + 0.1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 4)])
def test_cross_entropy_over_classes_and_members(shape: tuple[int, ...]) -> None:
    loss, logits = CrossEntropy("y"), torch.randn(shape, generator=torch.manual_seed(1))
    labels = torch.tensor([0, 3, 1, 2, 3])
    members = logits if logits.dim() == 3 else logits[:, None]
    losses = [F.cross_entropy(members[:, k], labels) for k in range(members.shape[1])]
    torch.testing.assert_close(loss(logits, {"y": labels}), torch.stack(losses).mean())
    p = members.softmax(-1).mean(1)
    torch.testing.assert_close(loss.predictions(logits)["y"], p)
    scores = loss.scores(logits, {"y": labels})
    expected = -p[torch.arange(5), labels].log().mean()
    torch.testing.assert_close(scores["loss"].float(), expected)
    right = np.mean(p.argmax(1).numpy() == labels.numpy())
    assert float(scores["accuracy"]) == pytest.approx(right)


def test_mean_squared_error_with_members() -> None:
    loss, outputs = MeanSquaredError("z"), torch.tensor([[1.0, 3.0], [0.0, 2.0]])
    z = torch.tensor([2.0, 0.0], dtype=torch.float64)
    assert float(loss(outputs, {"z": z})) == pytest.approx((1 + 1 + 0 + 4) / 4)
    assert loss.predictions(outputs)["z"].tolist() == [2.0, 1.0]
    assert float(loss.scores(outputs, {"z": z})["loss"]) == pytest.approx(0.5)
    assert float(loss(outputs[:, 0], {"z": z})) == pytest.approx(0.5)


@pytest.mark.parametrize("loss", [BinaryCrossEntropy, CrossEntropy])
def test_smoothing_is_a_share(loss: type[BinaryCrossEntropy]) -> None:
    with pytest.raises(ValueError, match="smoothing: found 1"):
        loss("y", smoothing=1)


def test_a_list_learns_only_how_its_candidates_compare() -> None:
    scores = torch.tensor([[2.0, 0.0, -1.0], [1.0, 1.0, 5.0]], requires_grad=True)
    wanted = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    loss = Listwise("had")
    value = loss(scores, {"had": wanted})
    value.backward()
    share = scores.detach().softmax(1)
    due = -(share[0, 0].log() + share[0, 2].log()) / 2 / 2
    torch.testing.assert_close(value.detach(), due)
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad[0], (share[0] - torch.tensor([0.5, 0, 0.5])) / 2)
    assert not scores.grad[1].any(), "nothing was wanted of it"
    moved = loss(scores + 3, {"had": wanted})
    torch.testing.assert_close(moved, value)
    members = torch.stack([scores, scores + torch.tensor([1.0, 0, 0])], 1)
    both = loss(members, {"had": wanted})
    torch.testing.assert_close(both, (value + loss(members[:, 1], {"had": wanted})) / 2)
    assert loss.predictions(members)["had"].shape == (2, 3)
    with pytest.raises(ValueError, match="row 1 of a batch"):
        loss.check({"had": np.array([[0.0, 1.0], [0.5, -1.0]])})
