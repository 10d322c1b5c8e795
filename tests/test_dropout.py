import pytest
import torch

from tutorkit.dropout import QuickDropout, quicken_dropout

ROWS = 200_000


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_share_and_scale(p):
    torch.manual_seed(0)
    y = QuickDropout(p)(torch.ones(ROWS))
    zero = (y == 0).double().mean().item()
    error = (p * (1 - p) / ROWS) ** 0.5
    assert abs(zero - p) < 4 * error
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-3, atol=0)
    assert abs(y.mean().item() - 1) < 4 * error / (1 - p)


def test_decisions_are_independent_within_a_draw():
    """Four decisions come out of one number of 64 bits: no two of them may go together."""
    torch.manual_seed(1)
    kept = (QuickDropout(0.3)(torch.ones(ROWS)) != 0).double().view(-1, 4)
    correlation = torch.corrcoef(kept.T)
    off = correlation[~torch.eye(4, dtype=torch.bool)]
    assert off.abs().max() < 4 / len(kept) ** 0.5
    assert (kept.mean(0) - 0.7).abs().max() < 4 * (0.21 / len(kept)) ** 0.5


def test_the_seed_decides():
    layer, x = QuickDropout(0.5), torch.randn(1000)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3,), (5, 7), (2, 3, 4), (0, 4), ()])
def test_shape_dtype_and_gradient(dtype, shape):
    x = torch.randn(shape).to(dtype).requires_grad_()
    y = QuickDropout(0.5)(x)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    y.sum().backward()
    dropped = (y == 0) & (x != 0)
    torch.testing.assert_close(x.grad, torch.where(dropped, 0, torch.full_like(x, 2.0)))


def test_evaluation_and_the_limits():
    x = torch.randn(100)
    assert QuickDropout(0.5).eval()(x) is x
    assert QuickDropout(0.0)(x) is x
    assert torch.equal(QuickDropout(1.0)(x), torch.zeros(100))


def test_quicken_replaces_plain_dropout_only():
    class Own(torch.nn.Dropout):
        pass

    model = torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Sequential(torch.nn.Dropout(0.2)),
                                Own(0.1), torch.nn.Linear(2, 2)).eval()  # fmt: skip
    quicken_dropout(model)
    assert type(model[0]) is QuickDropout and model[0].p == 0.3 and not model[0].training
    assert type(model[1][0]) is QuickDropout and model[1][0].p == 0.2
    assert type(model[2]) is Own
