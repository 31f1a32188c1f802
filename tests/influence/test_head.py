from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learned_aug.influence.head import HeadBatch, HeadTap, borrowed, check_finite, collect
from learned_aug.influence.layer import find_head
from learned_aug.influence.problem import HeadProblem


class Classifier(nn.Module):
    """Batch norm, dropout and a head that is not the last registered module."""

    def __init__(self, end: nn.Module | None = None, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.fc = nn.Linear(8, 4, bias=bias)
        self.end = end or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.end(self.fc(self.body(x)))
        return out


def images(n: int = 10) -> Tensor:
    return torch.randn(n, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def labels(n: int = 10) -> Tensor:
    return torch.arange(n) % 4


def tapped(model: nn.Module, head: nn.Linear | None = None, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
    with borrowed(model), HeadTap(model, head or find_head(model)) as tap:
        return tap(images() if x is None else x)


class TestFindHead:
    def test_default_is_last_registered_linear(self) -> None:
        model = Classifier()
        assert find_head(model) is model.fc

    def test_name_selects_another(self) -> None:
        model = Classifier()
        assert find_head(model, "body.1") is model.body[1]

    def test_wrappers_are_looked_through(self) -> None:
        class Compiled(nn.Module):  # as torch.compile gives, without starting the compiler
            def __init__(self, inner: nn.Module) -> None:
                super().__init__()
                self._orig_mod = inner

        model = Classifier()
        assert find_head(Compiled(nn.DataParallel(model))) is model.fc

    def test_unknown_or_wrong_name_lists_the_linears(self) -> None:
        with pytest.raises(ValueError, match=r"got BatchNorm1d; its Linear layers are \['body.1', 'fc'\]"):
            find_head(Classifier(), "body.2")
        with pytest.raises(ValueError, match="got nothing"):
            find_head(Classifier(), "classifier")

    def test_model_without_linear_names_the_kinds_found(self) -> None:
        with pytest.raises(ValueError, match="found only Conv2d, ReLU; replace a 1x1-convolution head"):
            find_head(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))


class Merging(nn.Linear):
    """A layer that folds its addition into its weight in eval mode, as adapters of low rank do."""

    def train(self, mode: bool = True) -> Merging:
        if mode != self.training:
            self.weight.data.add_(-1.0 if mode else 1.0)
        return super().train(mode)


class TestBorrowed:
    def test_layers_do_not_merge_their_weights(self) -> None:
        model = nn.Sequential(Merging(3, 2)).train()
        before = model[0].weight.detach().clone()
        with borrowed(model):
            assert not model[0].training
        assert torch.equal(model[0].weight, before)

    @pytest.mark.parametrize("fail", [False, True])
    def test_model_comes_back_bit_identical(self, fail: bool) -> None:
        model = Classifier().train()
        model.body[2].eval()
        model.fc.weight.requires_grad_(False)
        model.fc.bias.grad = torch.ones(4)
        before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
        buffers, grad = list(model.buffers()), model.fc.bias.grad

        def body() -> None:
            with borrowed(model), HeadTap(model, model.fc) as tap:
                assert not any(m.training for m in model.modules())
                assert not any(p.requires_grad for p in model.parameters())
                tap(images())
                model.body[2].running_mean.add_(1)
                model.body[2].running_var = torch.zeros(8)
                model.fc.bias.grad = None
                if fail:
                    raise KeyError("body")

        if fail:
            with pytest.raises(KeyError):
                body()
        else:
            body()
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == [
            name != "fc.weight" for name, _ in model.named_parameters()
        ]
        assert model.fc.bias.grad is grad
        assert all(a is b for a, b in zip(model.buffers(), buffers, strict=True))
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class TestHeadTap:
    def test_gives_features_and_logits_of_the_head(self) -> None:
        model = Classifier()
        features, logits = tapped(model)
        model.eval()
        torch.testing.assert_close(features, model.body(images()))
        torch.testing.assert_close(logits, model(images()))

    def test_features_are_differentiable_by_the_images(self) -> None:
        x = images().requires_grad_()
        features, logits = tapped(Classifier(), x=x)
        (grad,) = torch.autograd.grad(features.sum() + logits.sum(), x)
        assert grad.abs().sum() > 0

    def test_sees_through_data_parallel_and_keyword_calls(self) -> None:
        class Keyword(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.fc(input=self.body(x))
                return out

        features, _ = tapped(nn.DataParallel(Keyword()))
        assert features.shape == (10, 8)

    @pytest.mark.parametrize(
        ("end", "reason"),
        [
            (nn.Sigmoid(), "something after the head changes them"),
            (nn.Softmax(1), "something after the head changes them"),
            (nn.Linear(4, 3), r"must be its head's, \(10, 4\), got \(10, 3\)"),
        ],
    )
    def test_output_that_is_not_the_heads_is_refused(self, end: nn.Module, reason: str) -> None:
        model = Classifier(end)
        with pytest.raises(ValueError, match=reason):
            tapped(model, model.fc)

    def test_scaled_output_is_refused(self) -> None:
        class Scaled(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                return 10 * super().forward(x)

        with pytest.raises(ValueError, match=r"differ by 900\.0%"):
            tapped(Scaled())

    @pytest.mark.parametrize(
        "output", [lambda y: (y, None), lambda y: {"loss": None, "logits": y}, lambda y: SimpleNamespace(logits=y)]
    )
    def test_logits_are_found_in_outputs_that_hold_more(self, output: Callable[[Tensor], object]) -> None:
        class Holding(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                return output(super().forward(x))  # type: ignore[return-value]

        assert tapped(Holding())[1].shape == (10, 4)

    def test_output_without_a_tensor_is_refused(self) -> None:
        class Text(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                return str(super().forward(x))  # type: ignore[return-value]

        with pytest.raises(TypeError, match=r"must return logits, or hold them as .*, got str; wrap it"):
            tapped(Text())

    def test_validation_images_of_another_kind_are_named_as_such(self) -> None:
        model = Classifier()
        with borrowed(model), HeadTap(model, find_head(model)) as tap:
            tap(images())  # of the training data
            with pytest.raises(ValueError, match=r"the model does not take torch.float32 \(10, 1, 2, 2\)"):
                collect(tap, [(images()[:, :1], labels())])

    def test_head_that_runs_twice_or_never_is_refused(self) -> None:
        class Twice(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) + super().forward(x)

        with pytest.raises(ValueError, match="ran 2 times"):
            tapped(Twice())
        unused = Classifier()
        unused.register_module("aux", nn.Linear(2, 2))
        with pytest.raises(ValueError, match="ran 0 times"):
            tapped(unused)

    def test_features_that_are_not_one_vector_per_image_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"got \(10, 3, 2, 2\); the head must see one vector per image"):
            tapped(nn.Sequential(nn.Identity(), nn.Linear(2, 4)))

    def test_train_mode_is_refused(self) -> None:
        model = Classifier().train()
        with HeadTap(model, model.fc) as tap, pytest.raises(ValueError, match="train mode"):
            tap(images())

    def test_dropout_active_in_eval_mode_is_detected(self) -> None:
        class Dropping(Classifier):
            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.fc(F.dropout(self.body(x), 0.2, training=True))
                return out

        with pytest.raises(ValueError, match="active dropout"):
            tapped(Dropping())

    def test_features_that_depend_on_the_batch_are_detected(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12, track_running_stats=False), nn.Linear(12, 4))
        with pytest.raises(ValueError, match="normalization over the batch"):
            tapped(model)

    def test_head_of_another_model_and_closed_tap_are_refused(self) -> None:
        with pytest.raises(ValueError, match="find_head"):
            HeadTap(Classifier(), Classifier().fc)
        model = Classifier()
        with pytest.raises(RuntimeError, match="not open"):
            HeadTap(model, model.fc)(images())


class TestCollect:
    def collected(self, x: Tensor, y: Tensor, dtype: torch.dtype | None = None) -> HeadBatch:
        model = Classifier()
        with borrowed(model), HeadTap(model, model.fc) as tap:
            return collect(tap, zip(x.split(4), y.split(4), strict=True), dtype)

    def test_streams_in_order_and_without_grad(self) -> None:
        model = Classifier()
        with borrowed(model), HeadTap(model, model.fc) as tap:
            batch = collect(tap, zip(images().split(4), labels().int().split(4), strict=True))
            features, logits = tap(images())
        torch.testing.assert_close(batch.features, features.detach())
        torch.testing.assert_close(batch.logits, logits.detach())
        assert torch.equal(batch.labels, labels())
        assert not batch.features.requires_grad

    def test_half_precision_cache_gives_the_same_gradient(self) -> None:
        torch.manual_seed(0)
        model = Classifier()
        with borrowed(model), HeadTap(model, model.fc) as tap:
            half = collect(tap, [(images(), labels())], torch.float16)
            full = collect(tap, [(images(), labels())])
        assert half.features.dtype == torch.float16
        problems = [HeadProblem.from_batch(batch, model.fc) for batch in (half, full)]
        gradients = [problem.validation_gradient(problem.batch) for problem in problems]
        torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-3)
        v = torch.randn(4, 9)
        torch.testing.assert_close(*(problem.hvp(v) for problem in problems), rtol=1e-2, atol=1e-3)

    @pytest.mark.parametrize("count", [0, 3, 10, 12])
    def test_count_only_changes_the_memory(self, count: int) -> None:
        model = Classifier()
        with borrowed(model), HeadTap(model, model.fc) as tap:
            given = [(images().split(4), labels().split(4)) for _ in range(2)]
            expected = collect(tap, [(images(), labels())])
            batch = collect(tap, zip(*given[0], strict=True), count=count)
            bare = collect(tap, zip(*given[1], strict=True), count=count, keep_logits=False)
        for one, two in zip(batch, expected, strict=True):
            torch.testing.assert_close(one, two)
        assert torch.equal(bare.features, batch.features)
        assert bare.logits.shape == (10, 0)
        if count >= 10:
            assert batch.features.untyped_storage().nbytes() == count * 8 * 4

    def test_overflow_of_the_cache_names_its_remedy(self) -> None:
        model = Classifier()
        with torch.no_grad():
            model.body[1].weight.mul_(1e6)
        with borrowed(model), HeadTap(model, model.fc) as tap:
            with pytest.raises(ValueError, match="float16 for overflow, which bfloat16 does not have"):
                collect(tap, [(images(), labels())], torch.float16)
            assert collect(tap, [(images(), labels())], torch.bfloat16).features.dtype == torch.bfloat16

    def test_non_finite_sample_is_named(self) -> None:
        x = images()
        x[6] = torch.inf
        with pytest.raises(ValueError, match="features must be finite; sample 6 is the first of 1"):
            self.collected(x, labels())

    def test_label_outside_the_heads_classes_is_named(self) -> None:
        y = labels()
        y[5] = 4
        with pytest.raises(ValueError, match=r"0\.\.3, the head's classes; sample 5 has label 4"):
            self.collected(images(), y)
        y[5] = -1
        with pytest.raises(ValueError, match="sample 5 has label -1"):
            self.collected(images(), y)

    @pytest.mark.parametrize("y", [labels().float(), labels() > 1, F.one_hot(labels())])
    def test_labels_that_are_not_indices_are_refused(self, y: Tensor) -> None:
        with pytest.raises(ValueError, match="integer class indices"):
            self.collected(images(), y)

    def test_no_batch_is_refused(self) -> None:
        model = Classifier()
        with (
            borrowed(model),
            HeadTap(model, model.fc) as tap,
            pytest.raises(ValueError, match=r"at least one batch of .*, got none; check the loader"),
        ):
            collect(tap, [])

    def test_non_finite_logit_is_named(self) -> None:
        batch = HeadBatch(torch.zeros(3, 2), torch.tensor([[0.0, 0], [0, torch.nan], [0, 0]]), torch.zeros(3).long())
        with pytest.raises(ValueError, match="logits must be finite; sample 101"):
            check_finite(batch, 100)
