"""The recovery loop: next-token loss or distillation, validation on the way, the best parameters kept, resumable.

Which windows a step sees follows from the seed and the step number alone, so a run that is killed and resumed from its
last evaluation ends with the same numbers as one that was not.
"""

from __future__ import annotations

import logging
import math
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nxdi_svd_plugin.checkpoint.atomic import disk_errors
from nxdi_svd_plugin.errors import CheckpointError, NotFiniteError
from nxdi_svd_plugin.evaluate.perplexity import measure
from nxdi_svd_plugin.recover.divergence import divergence
from nxdi_svd_plugin.recover.muon import Muon
from nxdi_svd_plugin.recover.settings import Settings

logger = logging.getLogger(__name__)
CLIP = 1.0  # largest gradient norm
WARMUP = 0.05  # share of the steps in which the learning rate rises
FLOOR = 0.1  # share of the learning rate that is left at the last step
Tensors = dict[str, torch.Tensor]


@dataclass
class State:
    """A run at an evaluation. history: one object each with step, train_loss, validation_perplexity (None: no
    number), seconds."""

    step: int = 0
    best_step: int = 0
    best: Tensors = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best_perplexity(self) -> float:
        """The lowest validation perplexity so far, of step `best_step`."""
        found = [row["validation_perplexity"] for row in self.history]
        return min((perplexity for perplexity in found if perplexity is not None), default=math.inf)


class Trainer:
    """Trains `trained`, parameters of `model` by name, on windows of tokens.

    Args:
        model: a causal language model; what is not in `trained` is frozen.
        teacher: the dense model to imitate, or None for next-token loss.
        file: where the state is kept. identity: what must be equal for a state to be resumed.
    """

    def __init__(
        self,
        model: nn.Module,
        trained: Mapping[str, nn.Parameter],
        settings: Settings,
        teacher: nn.Module | None,
        file: Path,
        identity: dict[str, Any],
    ) -> None:
        self.model, self.trained, self.settings, self.teacher = model, dict(trained), settings, teacher
        self.file, self.identity = file, identity
        self.device = next(iter(self.trained.values())).device
        self.optimizer = Muon(self.trained.values(), settings.rate)
        self.mixed = settings.mixed(self.device)

    def run(self, train: torch.Tensor, validation: torch.Tensor) -> State:
        """Train to the last step or until `patience` evaluations brought nothing, then load the best parameters."""
        state = self.load() if self.file.exists() else State()
        if not state.history:
            self.evaluate(state, validation, math.nan, 0.0)
        began, before, losses = time.monotonic(), state.history[-1]["seconds"], []
        while state.step < self.settings.steps and not self.stale(state):
            losses.append(self.one_step(batch(train, self.settings, state.step), state.step))
            state.step += 1
            if state.step % self.settings.evaluate_every == 0 or state.step == self.settings.steps:
                self.evaluate(state, validation, sum(losses) / len(losses), before + time.monotonic() - began)
                losses = []
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state.best[name])
        return state

    def one_step(self, tokens: torch.Tensor, step: int) -> float:
        """One optimizer step on windows [batch, length]; the mean loss."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * schedule(step, self.settings.steps)
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for piece in torch.split(tokens, self.settings.micro_batch):
            piece = piece.to(self.device)
            loss = self.loss(piece) * len(piece) / len(tokens)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.trained.values(), CLIP)
        self.optimizer.step()
        return total

    def loss(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mean over positions of -log p(next token), or of KL(teacher || model)."""
        logits = self.logits(self.model, tokens)
        if self.teacher is None:
            return next_token_loss(logits.float(), tokens)
        with torch.no_grad():
            target = self.logits(self.teacher, tokens)
        return divergence(logits, target)

    def logits(self, model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        """Logits, in bfloat16 where the settings say so."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
        return logits

    def evaluate(self, state: State, validation: torch.Tensor, loss: float, seconds: float) -> None:
        """Measure the validation perplexity, keep the parameters if they are the best, save the state.

        Raises:
            NotFiniteError: the model gives no numbers before the first step; later, the training has diverged.
        """
        try:
            perplexity = validation_perplexity(self.model, validation, self.mixed)
        except NotFiniteError:
            if state.step == 0:
                raise
            perplexity = None
        if perplexity is not None and perplexity < state.best_perplexity:
            state.best_step = state.step
            state.best = {name: p.detach().clone() for name, p in self.trained.items()}
        row = {"step": state.step, "train_loss": loss, "validation_perplexity": perplexity, "seconds": seconds}
        state.history.append(row | {"train_loss": loss if math.isfinite(loss) else None})
        trained = "" if math.isnan(loss) else f"loss {loss:.4f}, "
        found = "no number: the training diverged" if perplexity is None else f"{perplexity:.3f}"
        logger.info("step %d of %d: %svalidation perplexity %s", state.step, self.settings.steps, trained, found)
        self.save(state)

    def stale(self, state: State) -> bool:
        """Whether the last `patience` evaluations brought no better perplexity."""
        later = [row for row in state.history if row["step"] > state.best_step]
        return len(later) >= self.settings.patience

    def save(self, state: State) -> None:
        """Write the state atomically."""
        content = {
            "identity": self.identity,
            "state": vars(state),
            "trained": {name: p.detach() for name, p in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        temporary = self.file.with_suffix(".tmp")
        with disk_errors(self.file):
            torch.save(content, temporary)
            temporary.replace(self.file)

    def load(self) -> State:
        """Restore parameters and optimizer from the file.

        Raises:
            CheckpointError: the state is damaged, or belongs to another model, data or settings.
        """
        try:
            content = torch.load(self.file, map_location=self.device, weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{self.file} is damaged ({said}); start anew with --overwrite") from error
        changed = sorted(k for k in self.identity if content["identity"].get(k) != self.identity[k])
        if changed:
            raise CheckpointError(
                f"{self.file} was written with another {', '.join(changed)}; repeat the first command line, or start "
                "anew with --overwrite"
            )
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(content["trained"][name])
        self.optimizer.load_state_dict(content["optimizer"])
        return State(**content["state"])


def batch(train: torch.Tensor, settings: Settings, step: int) -> torch.Tensor:
    """The windows of a step: each epoch is a permutation drawn from seed + epoch."""
    rows = []
    for position in range(step * settings.batch, (step + 1) * settings.batch):
        epoch, place = divmod(position, len(train))
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.seed + epoch))
        rows.append(train[order[place]])
    return torch.stack(rows)


def schedule(step: int, steps: int) -> float:
    """Share of the learning rate: linear up to WARMUP of the steps, then a cosine down to FLOOR."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean -log p(token t+1 | tokens to t) over windows [batch, length]."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def validation_perplexity(model: Any, windows: torch.Tensor, mixed: bool = False) -> float:
    """Perplexity over windows [count, length], each without outside context, as `nxdi-svd evaluate --window` has it.

    Raises:
        NotFiniteError: the model's logits are no numbers.
    """
    model.eval()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=mixed):
        return measure(model, windows.flatten(), windows.shape[1]).perplexity
