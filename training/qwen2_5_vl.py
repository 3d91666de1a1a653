"""Training of the pocket Qwen2.5-VL on drawn scenes; :mod:`training.trainer` has the common parts.

Besides captions and queries, the model learns boxes and points, as JSON in pixels of the resized
picture. Three measures make that fast to learn:

- Every coordinate is one token. The embeddings of the numbers start as sines and cosines of the
  number, and the loss of a coordinate includes its neighbors: a pixel off is nearly right.
- The probe reads the content of each image token: kind, color and cell of the shape there and,
  through the embeddings of the numbers, the four edges of its box. The text model then only has to
  copy what the encoder wrote into the token.
- A quarter of the pictures are cropped at random around their shapes. The cells of the grid mean
  nothing there, but boxes do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import Qwen2_5_VLForConditionalGeneration

from models.pocket.scenes import COLORS, KINDS
from training import trainer
from training.pictures import Pool
from training.qwen2_5_vl_checkpoint import (
    MERGE,
    number_ids,
    pocket_config,
    pocket_tokenizer,
    save_pocket,
)
from training.qwen2_5_vl_pictures import TOKEN, Picture, Pictures, build_patches, probe_targets
from training.qwen2_5_vl_rows import Prompts, build_packed_row, build_reordered_row
from training.qwen2_5_vl_videos import Video, Videos, build_video_row
from training.rows import IGNORED, PackedBatch, pack, score_segments
from training.trainer import group_by_length
from training.warm_start import copy_weights

HIDDEN = 128
TOLERANCE = 2
"""Pixels within which a coordinate counts as right."""


@dataclass(frozen=True)
class TrainingSettings(trainer.TrainingSettings):
    images_per_step: int = 32
    first_mix: tuple[int, int] = (16, 16)
    last_mix: tuple[int, int] = (24, 40)
    videos_per_step: int = 32
    fresh_videos_per_step: int = 16
    """With 4, each video came back often enough to be learned by heart: answers about the pool's
    videos were right 90% of the time, and about others 79%."""
    target_std: float = 1.0
    """Standard deviation of the target of a coordinate, in pixels."""


class Probe(nn.Module):
    """A linear readout of image tokens."""

    sizes = (len(KINDS) + 1, len(COLORS) + 1, 10, 2, 2)
    """Classes of each readout: kind, color, cell, whether the token contains the shape's center,
    and whether the shape moves."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Linear(HIDDEN, sum(self.sizes))
        # Six states, compared to the embeddings of the numbers: the token's own center (x, y), and
        # the four edges of the shape.
        self.edges = nn.Linear(HIDDEN, 6 * HIDDEN)


class Trainer(trainer.Trainer[Picture]):
    """Trains the pocket Qwen2.5-VL."""

    settings: TrainingSettings
    model: Qwen2_5_VLForConditionalGeneration
    probe: Probe

    def __init__(self, settings: TrainingSettings, work: Path) -> None:
        torch.manual_seed(settings.seed)
        self.tokenizer = pocket_tokenizer()
        self.prompts = Prompts(self.tokenizer)
        model = Qwen2_5_VLForConditionalGeneration(pocket_config(self.tokenizer))
        self.numbers = torch.tensor(number_ids(self.tokenizer))
        _init_number_embeddings(model.get_input_embeddings().weight, self.numbers)
        super().__init__(model, Probe(), settings, work)
        number_of_token = torch.full((model.config.text_config.vocab_size,), -1)
        number_of_token[self.numbers] = torch.arange(len(self.numbers))
        self.number_of_token = number_of_token.to(self.device)
        self.numbers = self.numbers.to(self.device)
        self._video_pool: Pool[Video] | None = None

    def start_from(self, folder: Path) -> None:
        earlier = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        copy_weights(self.model.state_dict(), earlier.state_dict(), self.tokenizer, tokenizer)

    def pictures(self) -> Iterator[list[Picture]]:
        source = Pictures(self.settings.seed + 1 + self.steps, self.settings.max_side)
        return iter(
            DataLoader(source, batch_size=16, num_workers=1, collate_fn=list, prefetch_factor=4)
        )

    def _videos(self) -> Iterator[list[Video]]:
        """Yield batches of fresh videos endlessly."""
        source = Videos(self.settings.seed + 2 + self.steps)
        return iter(
            DataLoader(source, batch_size=4, num_workers=1, collate_fn=list, prefetch_factor=4)
        )

    def loss(
        self, pictures: list[Picture], rng: random.Random
    ) -> tuple[Tensor, list[tuple[str, bool]]]:
        with torch.autocast(self.device.type, torch.bfloat16):
            return self._loss(pictures, rng)

    def _loss(
        self, pictures: list[Picture], rng: random.Random
    ) -> tuple[Tensor, list[tuple[str, bool]]]:
        if self._video_pool is None:
            self._video_pool = Pool(self._videos(), self.settings.pool_size // 8)
        videos = self._video_pool.sample(
            self.settings.videos_per_step, self.settings.fresh_videos_per_step, rng
        )
        first_indices = [len(pictures)]
        for video in videos:
            first_indices.append(first_indices[-1] + len(video.pairs))
        encoded = [*pictures, *(pair for video in videos for pair in video.pairs)]
        features = self._encode(encoded)
        packed_count, reordered_count = self.mix
        rows = [
            build_packed_row(index, pictures[index], self.prompts, self.settings, rng)
            for index in range(packed_count)
        ]
        for number in range(reordered_count):
            index = number % len(pictures)
            rows.append(build_reordered_row(index, pictures[index], self.prompts, rng))
        per_second = self.model.config.vision_config.tokens_per_second
        rows += [
            build_video_row(first_index, video, self.prompts, per_second, rng)
            for first_index, video in zip(first_indices, videos, strict=False)
        ]
        losses = []
        weight = 0.0
        exact = []
        for bucket in group_by_length(rows):
            batch = pack(bucket, self.tokenizer.pad_token_id, self.device)
            batch_features = torch.cat(
                [features[index] for row in bucket for index in row.feature_indices]
            )
            loss, predicted = self._answer_loss(batch, batch_features)
            losses.append(loss)
            weight += batch.weights.sum().item()
            exact += score_segments(batch, predicted)
        answer_loss = torch.stack(losses).sum() / weight
        return answer_loss + 0.5 * self._probe_loss(torch.cat(features), encoded), exact

    def write(self, out: Path) -> None:
        save_pocket(out, self.model, self.tokenizer)

    def _encode(self, pictures: list[Picture]) -> list[Tensor]:
        """Return the image tokens (tokens, hidden) of each picture.

        The computation is the stock vision encoder's, for pictures of several shapes at once.
        """
        encoder = self.model.model.visual
        config = encoder.config
        head_dim = config.hidden_size // config.num_heads
        theta = config.rope_parameters["rope_theta"]
        patches = build_patches(pictures, head_dim, config.window_size // TOKEN, theta)
        cos = patches.angles.cos().to(self.device)[:, :, None]
        sin = patches.angles.sin().to(self.device)[:, :, None]
        full_mask = _additive(patches.full_mask.to(self.device))
        window_mask = _additive(patches.window_mask.to(self.device))
        weight = encoder.patch_embed.proj.weight.flatten(1)
        states = F.linear(patches.values.to(self.device), weight).float()
        for index, block in enumerate(encoder.blocks):
            qkv = block.attn.qkv(block.norm1(states)).unflatten(-1, (3, config.num_heads, head_dim))
            query, key, value = qkv.unbind(2)
            query = query * cos + _rotate_half(query) * sin
            key = key * cos + _rotate_half(key) * sin
            mask = full_mask if index in config.fullatt_block_indexes else window_mask
            attended = F.scaled_dot_product_attention(
                query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask
            )
            states = states + block.attn.proj(attended.transpose(1, 2).flatten(2))
            states = states + block.mlp(block.norm2(states))
        unpadded = [row[:count] for row, count in zip(states, patches.counts, strict=True)]
        merged: Tensor = encoder.merger(torch.cat(unpadded))
        return list(merged.split([count // MERGE**2 for count in patches.counts]))

    def _answer_loss(self, batch: PackedBatch, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the losses of learned tokens, and the most likely tokens.

        A coordinate within ``TOLERANCE`` of its label is replaced by the label.
        """
        model = self.model.model
        embeds = model.get_input_embeddings()(batch.ids)
        config = self.model.config
        is_visual = (batch.ids == config.image_token_id) | (batch.ids == config.video_token_id)
        embeds = embeds.masked_scatter(is_visual[..., None], features.float())
        states = model.language_model(
            inputs_embeds=embeds,
            attention_mask={"full_attention": _additive(batch.mask)},
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        is_learned = batch.labels != IGNORED
        labels = batch.labels[is_learned]
        logits = self.model.lm_head(states[is_learned]).float()
        may_be_coordinate = _is_grounding_segment(batch)[is_learned]
        numbers = torch.where(may_be_coordinate, self.number_of_token[labels], -1)
        losses = F.cross_entropy(logits, labels, reduction="none")
        is_coordinate = numbers >= 0
        number_log_probs = logits[is_coordinate].log_softmax(-1)[:, self.numbers]
        coordinate_losses = -(self._targets(numbers[is_coordinate]) * number_log_probs).sum(-1)
        losses = losses.index_put((is_coordinate,), coordinate_losses)
        best = logits.argmax(-1)
        best_numbers = self.number_of_token[best]
        is_close = (best_numbers >= 0) & ((best_numbers - numbers).abs() <= TOLERANCE)
        predicted = batch.labels.clone()
        predicted[is_learned] = torch.where(is_coordinate & is_close, labels, best)
        return (losses * batch.weights[is_learned]).sum(), predicted

    def _targets(self, numbers: Tensor) -> Tensor:
        """Return the targets (count, all numbers) of exact numbers (count,).

        A target is a normal distribution around the exact number.
        """
        distance = torch.arange(len(self.numbers), device=self.device) - numbers[:, None]
        return (-0.5 * (distance / self.settings.target_std) ** 2).softmax(-1)

    def _probe_loss(self, features: Tensor, pictures: list[Picture]) -> Tensor:
        classes, edges, has_edge = (target.to(self.device) for target in probe_targets(pictures))
        loss = torch.zeros((), device=self.device)
        class_logits = self.probe.classes(features).float().split(Probe.sizes, -1)
        for logits, target in zip(class_logits, classes.unbind(1), strict=True):
            loss = loss + F.cross_entropy(logits, target)
        number_embeddings = self.model.get_input_embeddings().weight[self.numbers]
        states = self.probe.edges(features).unflatten(-1, (6, -1))[has_edge]
        log_probs = (states @ number_embeddings.T).float().log_softmax(-1)
        return loss - (self._targets(edges[has_edge]) * log_probs).sum(-1).mean()


def _is_grounding_segment(batch: PackedBatch) -> Tensor:
    """Return a (rows, length) mask of the segments that ask for boxes or points."""
    mask = torch.zeros_like(batch.labels, dtype=torch.bool)
    for task, row, start, end in batch.spans:
        if "detect" in task or "point" in task:
            mask[row, start:end] = True
    return mask


def _additive(mask: Tensor) -> Tensor:
    """Return what to add to attention scores: 0 if ``mask`` is True, and else minus infinity.

    Attention would otherwise make it anew in every layer.
    """
    return torch.zeros_like(mask, dtype=torch.bfloat16).masked_fill_(~mask, -torch.inf)


def _rotate_half(states: Tensor) -> Tensor:
    first, second = states.chunk(2, -1)
    return torch.cat([-second, first], -1)


@torch.no_grad()
def _init_number_embeddings(embeddings: Tensor, ids: Tensor) -> None:
    """Set the embeddings of the numbers to their sines and cosines.

    Wavelengths are 4 to 600. The norm is that of the other embeddings.
    """
    wavelengths = 4 * (600 / 4) ** torch.linspace(0, 1, embeddings.shape[1] // 2)
    angles = 2 * torch.pi * torch.arange(len(ids))[:, None] / wavelengths
    embeddings[ids] = torch.cat([angles.sin(), angles.cos()], -1) * 2**0.5 * 0.02
