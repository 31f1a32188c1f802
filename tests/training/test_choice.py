"""The best of a few draws."""

import pytest
import torch
import torch.nn.functional as F

from learned_aug import DrawChoice


def test_the_hardest_draw_has_a_higher_loss_than_any(model, augmenter, batch):
    images, labels = batch
    losses = []
    for draws in (1, 6):
        choice = DrawChoice(model, augmenter, by="loss", draws=draws)
        with torch.no_grad():
            model.eval()
            losses.append(float(F.cross_entropy(model(choice(images, labels)), labels)))
    assert losses[0] < losses[1]


def test_each_image_gets_the_draw_of_the_best_score(model, augmenter, batch, few, monkeypatch):
    images, labels = batch
    choice = DrawChoice(model, augmenter, train=few[0], val=few[1], draws=3)
    seen = []
    monkeypatch.setattr(choice, "score", lambda drawn, y: seen.append(drawn) or drawn.flatten(1).mean(1))
    out = choice(images, labels)
    (drawn,) = seen
    means = drawn.view(3, len(images), -1).mean(2)
    torch.testing.assert_close(out.flatten(1).mean(1), means.amax(0))


def test_influence_is_solved_as_often_as_asked(model, augmenter, batch, few, monkeypatch):
    choice = DrawChoice(model, augmenter, train=few[0], val=few[1], every=2)
    renewals = []
    renew = choice.reader.renew
    monkeypatch.setattr(choice.reader, "renew", lambda: renewals.append(1) or renew())
    for _ in range(4):
        choice(*batch)
    assert len(renewals) == 2


def test_the_classifier_is_left_in_its_mode(model, augmenter, batch):
    model.train()
    DrawChoice(model, augmenter, by="loss")(*batch)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("bad", [{"draws": 0}, {"every": 0}])
def test_settings_below_one_are_refused(model, augmenter, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DrawChoice(model, augmenter, by="loss", **bad)
