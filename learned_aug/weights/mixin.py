"""PretrainedMixin: reading, writing and publishing the weights of a module that has a configuration."""

from __future__ import annotations

from os import PathLike
from typing import TypeVar

import torch
from torch import nn

from learned_aug.config import AugmenterConfig
from learned_aug.weights import files as weights
from learned_aug.weights import hub, registry
from learned_aug.weights.card import CardFacts, render
from learned_aug.weights.files import WeightsError

__all__ = ["PretrainedMixin"]


Module = TypeVar("Module", bound="PretrainedMixin")


class PretrainedMixin(nn.Module):
    """Adds from_pretrained, save_pretrained and push_to_hub to a module that is built from its configuration alone."""

    config: AugmenterConfig

    def save_pretrained(self, folder: str | PathLike[str], *, card: CardFacts | None = None) -> None:
        """Write ``model.safetensors`` and ``config.json`` to `folder`, which is made if need be.

        Each file is replaced atomically: a failure leaves the old one, or none.

        Args:
            folder: what :meth:`from_pretrained` reads again: a path object, "local-dir:PATH", or a string that begins
                with "./", "../", "/" or "~".
            card: facts for a model card, which is written too.

        Raises:
            ValueError: if `from_pretrained` would take the string for anything but a local folder.
            WeightsError: if the weights are no floats, or not finite.
            OSError: if the folder cannot be written.
        """
        folder = registry.local_folder(folder)
        files = weights.encode(self.config, self.state_dict())
        extra = {} if card is None else render(card, self.config, files, f"./{folder.name}")
        weights.write(folder, {**files, **extra})

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: CardFacts | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload an augmenter",
        token: str | bool | None = None,
    ) -> str:
        """Publish what :meth:`save_pretrained` writes, with a model card, as one commit to the Hugging Face Hub.

        Args:
            repo_id: "org/name"; made if it does not exist.
            card: facts for the model card; without them a card that was there stays, and a new one says what is known.
            private: whether the repository is; by default the account's setting.
            revision: branch, made if it does not exist; by default "main".
            commit_message: first line of the commit's message.
            token: token of the Hub; by default the one of ``hf auth login``.

        Returns:
            The commit, 40 hexadecimal digits, to pin as ``from_pretrained(repo_id, revision=...)``.

        Raises:
            WeightsError: if the Hub refuses, fails or does not answer, or `private` is not what the repository is.
            ValueError: if `repo_id` is no possible name.
            OSError: if a picture of the card cannot be read.
        """
        files = weights.encode(self.config, self.state_dict())
        rendered = render(CardFacts() if card is None else card, self.config, files, repo_id)
        return hub.push(
            repo_id,
            files if card is None else {**files, **rendered},
            defaults=rendered if card is None else None,
            message=commit_message,
            private=private,
            revision=revision,
            token=token,
        )

    @classmethod
    @torch.inference_mode(False)
    def from_pretrained(
        cls: type[Module],
        source: str | PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | PathLike[str] | None = None,
        token: str | bool | None = None,
    ) -> Module:
        """Read pretrained weights, a Hub repository, or what :meth:`save_pretrained` wrote.

        Args:
            source: a name of :func:`learned_aug.list_pretrained`; "org/name" or "hf-hub:org/name", a Hub repository; a
                path object, "local-dir:PATH", or a string that begins with "./", "../", "/" or "~", a local folder.
            revision: branch, tag or commit of a Hub repository; by default "main". Pin the commit for what must not
                change: 40 hexadecimal digits, read from the cache without a request.
            cache_dir: folder of Hub downloads; by default the Hub client's own.
            token: token for private repositories; by default the one of ``hf auth login``.

        Raises:
            ValueError: if `source` is no such name.
            WeightsError: if the weights cannot be had, are damaged, or do not fit.
        """
        config, state, where = registry.load(source, revision=revision, cache_dir=cache_dir, token=token)
        try:
            with torch.device("meta"):  # a config from elsewhere may ask for any amount of memory
                expected = cls(config).state_dict()
        except (RuntimeError, OverflowError, TypeError) as error:  # by how far a size is beyond torch's integers
            raise WeightsError(f"{where} asks for networks that cannot be built ({error}); fetch it again") from error
        weights.check(state, expected, where)
        with torch.random.fork_rng(devices=[]):  # the initial weights, which are not kept, draw from it
            module = cls(config)
        module.load_state_dict(state)
        return module
