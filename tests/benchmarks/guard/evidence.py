"""What the guard sees of a picture beside its answer, and what a purified copy is answered: made once and kept.

    out/guard/MODEL/evidence-DIGEST.jsonl    by picture: the pre-screen's p-value, the squeeze's distance, the second
                                             answer; DIGEST: of the weights and of the pre-screen's head

Second answers are asked for only of suspects and of attacks: of others nobody would hear them.
"""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from loadtest.adversarial.runs import Record, read_record
from loadtest.adversarial.victim import Victim
from models.families.texthawk2.image_processor import cut_tiles
from schedulers.guard.text import Asked
from schedulers.policies.guard import combined
from serving.delivery.stream.wire import EngineImage
from serving.guard.fit import Benign
from serving.guard.purify import purified, squeezed
from serving.guard.screen import FILE, shipped_screen
from tests.benchmarks.guard.corpus import HARD_FROM, SEEDS, Part, items
from tests.benchmarks.guard.replay import Answered
from tests.benchmarks.guard.traces import Tiles, Trace, answers, batched, cut

_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An answer and where its pictures are. ``key``: its name among all of a model. ``is_extra``: a hard one beside the
    mixture, which counts among hard ones alone."""

    key: str
    kind: str
    is_hard: bool
    is_extra: bool
    answered: Answered
    prompt_ids: tuple[int, ...]
    expected: str | None
    pictures: Callable[[], list[Tiles]]
    record: Record | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """``again``: tokens of the answer to a purified copy, and whether it ended by itself; it was let run for
    ``again_cap`` tokens at most."""

    p_screen: float | None = None
    squeeze: float | None = None
    again: int | None = None
    again_ended: bool = False
    again_cap: int = 0

    def purified(self, cap: int) -> tuple[int, bool] | None:
        """Up to a cap: (tokens, whether it ended by itself). None: nobody has asked that far."""
        if self.again is None or (not self.again_ended and self.again_cap < cap):
            return None
        return min(self.again, cap), self.again_ended and self.again <= cap


def evidence_file(weights: str, head: Path = FILE) -> str:
    """Its name: other weights, or another head of the pre-screen, see something else. ``weights``: their SHA-256."""
    return f"evidence-{hashlib.sha256(weights.encode() + head.read_bytes()).hexdigest()[:12]}.jsonl"


class Kept:
    """Evidence by key, in a file that only grows; the last line of a key counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Evidence] = {}
        for line in path.read_text().splitlines() if path.is_file() else []:
            try:
                key, plain = json.loads(line)
            except ValueError:
                continue  # cut off by an interruption
            self._known[key] = Evidence(**plain)

    def __getitem__(self, key: str) -> Evidence:
        return self._known.get(key, Evidence())

    def add(self, found: Mapping[str, Evidence]) -> None:
        """Keep more of it."""
        with self._path.open("a") as file:
            for key, evidence in found.items():
                self._known[key] = evidence
                file.write(json.dumps([key, asdict(evidence)]) + "\n")


# -- who is looked at ------------------------------------------------------------------------------------------------


def benign_subjects(traces: Sequence[Trace], model: str, part: Part, victim: Victim) -> list[Subject]:
    """Of the corpus; pictures are drawn again."""

    def pictures(place: int) -> list[Tiles]:
        return cut(next(items(model, part, [place])), victim)

    return [
        Subject(
            key=f"{part}-{SEEDS[part]}-{trace.place}",
            kind=trace.kind,
            is_hard=trace.is_hard,
            is_extra=trace.place >= HARD_FROM,
            answered=Answered(
                asked=asked_of(trace, victim.prompts.image_id),
                token_ids=(*trace.token_ids, *[victim.end_id] * trace.is_ended),
                log_p_ends=trace.log_p_ends,
                is_ended=trace.is_ended,
            ),
            prompt_ids=trace.prompt_ids,
            expected=trace.expected,
            pictures=lambda place=trace.place: pictures(place),  # type: ignore[misc]
        )
        for trace in traces
    ]


def attacked_subjects(runs: Path, model: str, victim: Victim) -> list[Subject]:
    """Of every run below the folder that holds token ids and belongs to these weights; of a picture that several runs
    attacked, the one with most iterations."""
    found: dict[tuple[str, str, int], tuple[Record, Path]] = {}
    for path in sorted(runs.rglob("[0-9]*.json")):
        try:
            record = read_record(path)
        except (TypeError, ValueError, KeyError):
            continue  # written before records held ids
        if record.model != model or record.weights != victim.weights or not record.token_ids:
            continue
        key = (record.attack, record.task, record.index)
        if key not in found or found[key][0].iterations <= record.iterations:
            found[key] = (record, path.with_suffix(".png"))
    return [_attacked(record, path, victim) for record, path in found.values()]


def _attacked(record: Record, path: Path, victim: Victim) -> Subject:
    def pictures() -> list[Tiles]:
        return [cut_tiles(np.asarray(Image.open(path).convert("RGB")), victim.limits)]

    is_ended = not record.is_at_cap
    digest = zlib.crc32(path.read_bytes())
    return Subject(
        key=f"{record.attack}-{record.task}-{record.index}-{digest:08x}",
        kind=record.attack,
        is_hard=False,
        is_extra=False,
        answered=Answered(
            asked=Asked(record.question, num_images=1),
            token_ids=(*record.token_ids, *[victim.end_id] * is_ended),
            log_p_ends=record.log_p_ends,
            is_ended=is_ended,
        ),
        prompt_ids=tuple(victim.prompts.build([("user", (None, record.question))])),
        expected=record.expected,
        pictures=pictures,
        record=record,
    )


def asked_of(trace: Trace, image_id: int) -> Asked:
    """As ``serving.tasks.chat.asked`` says it of the request."""
    return Asked(trace.turns[-1][1], num_images=trace.prompt_ids.count(image_id), num_turns=len(trace.turns))


def benign_of(subject: Subject, evidence: Evidence) -> Benign:
    """For a calibration."""
    told = subject.answered
    return Benign(
        asked=told.asked,
        token_ids=told.token_ids,
        log_p_ends=told.log_p_ends,
        is_ended=told.is_ended,
        squeeze=evidence.squeeze,
    )


def seen(subject: Subject, evidence: Evidence, cap: int) -> Answered:
    """The answer with what else is known of it. ``cap``: where a second answer ends."""
    return replace(
        subject.answered, p_screen=evidence.p_screen, squeeze=evidence.squeeze, purified=evidence.purified(cap)
    )


# -- what there is to see --------------------------------------------------------------------------------------------


def screen(subjects: Sequence[Subject], kept: Kept) -> None:
    """The pre-screen of whoever has not been through it; of several pictures as the gateway does it."""
    looker = shipped_screen()
    missing = [one for one in subjects if kept[one.key].p_screen is None]
    for batch in track(list(batched(missing, _BATCH)), "pre-screen") if missing else ():
        found = {}
        for one in batch:
            p_values = {str(place): looker.p_value(tiles) for place, (tiles, _) in enumerate(one.pictures())}
            found[one.key] = replace(kept[one.key], p_screen=combined(p_values))
        kept.add(found)


def squeeze(subjects: Sequence[Subject], kept: Kept, victim: Victim) -> None:
    """How far the embedding of the first picture moves when it is coarsened."""
    missing = [one for one in subjects if kept[one.key].squeeze is None]
    for batch in track(list(batched(missing, _BATCH)), "squeeze") if missing else ():
        kept.add({one.key: replace(kept[one.key], squeeze=distance(victim, one.pictures()[0])) for one in batch})


@torch.inference_mode()
def distance(victim: Victim, picture: Tiles) -> float:
    """1 - cosine of the embeddings' tokens, as the torch engine has it."""
    tiles, (rows, columns) = picture
    image = EngineImage("", tiles, (rows, columns))
    both = [image, squeezed(image)]
    one, other = victim.network.encode_images(
        torch.from_numpy(np.concatenate([each.tiles for each in both])), [each.grid for each in both]
    )
    return round(float(1.0 - torch.cosine_similarity(one.float(), other.float(), dim=-1).mean()), 6)


def ask_again(subjects: Iterable[tuple[Subject, int]], kept: Kept, victim: Victim) -> None:
    """What purified copies are answered, up to each subject's cap. The draw is by the key, so that a run can be
    repeated; a server's is secret."""
    missing = [(one, cap) for one, cap in subjects if kept[one.key].purified(cap) is None]
    for batch in track(list(batched(missing, _BATCH)), "purified") if missing else ():
        most = max(cap for _, cap in batch)
        told = answers(victim, [one.prompt_ids for one, _ in batch], [_copies(one) for one, _ in batch], most)
        found = {}
        for (one, _), answer in zip(batch, told, strict=True):
            length = answer.num_tokens + answer.is_ended
            found[one.key] = replace(kept[one.key], again=length, again_ended=answer.is_ended, again_cap=most)
        kept.add(found)


def _copies(subject: Subject) -> list[Tiles]:
    draw = random.Random(zlib.crc32(subject.key.encode()))
    return list(_purified(subject.pictures(), draw))


def _purified(pictures: Sequence[Tiles], draw: random.Random) -> Iterator[Tiles]:
    for tiles, (rows, columns) in pictures:
        copy = purified(EngineImage("", tiles, (rows, columns)), draw)
        yield copy.tiles, copy.grid
