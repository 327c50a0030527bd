"""Prompts of compositions that are never trained on, with their seeds."""

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

from ..data.build import scene_from_json
from ..data.captions import caption
from ..data.catalogue import BY_NAME, OBJECTS, THINGS
from ..data.scene import HORIZONTAL, VERTICAL, Scene, random_scene

KINDS = ("object", "tinted object", "shape", "group", "pair")
"""One icon as drawn, one in a colour, one plain shape, two to four of a kind, two things in a relation."""

NAMES: tuple[str, ...] = tuple(thing.name for thing in THINGS)
"""Every thing's name, in the order of the image-text model's similarities."""

RETRIEVAL_CANDIDATES = 100
_FIRST_SEED = 1000


@dataclass(frozen=True)
class Sizes:
    """How many prompts of each kind."""

    objects: int = RETRIEVAL_CANDIDATES
    """Objects that get a prompt "a <colour> <object>", and one without a colour where such a one is held out."""
    shapes: int = 60
    groups: int = 90
    pairs: int = 96


@dataclass(frozen=True)
class Prompt:
    """A held-out scene as a person would ask for it, and the seed that its picture is made with."""

    kind: str
    scene: Scene
    text: str
    seed: int

    @property
    def count(self) -> int:
        return sum(item.count for item in self.scene.items)


def kind_of(scene: Scene) -> str | None:
    """One of `KINDS`, or None for two things side by side in no stated order."""
    first = scene.items[0]
    if len(scene.items) == 2:
        return "pair" if first.place in HORIZONTAL + VERTICAL else None
    if first.count > 1:
        return "group"
    if BY_NAME[first.name].is_shape:
        return "shape"
    return "tinted object" if first.colour else "object"


def retrieval_objects(rng: random.Random) -> list[str]:
    """The objects that a picture is told apart from: a hundred, or all when the catalogue has fewer."""
    names = [thing.name for thing in OBJECTS]
    return sorted(rng.sample(names, min(RETRIEVAL_CANDIDATES, len(names))))


def held_out_prompts(sizes: Sizes, seed: int = 1, draws: int = 40_000) -> list[Prompt]:
    """Distinct held-out compositions in plain wording, in the order of `KINDS`; the same for the same arguments.

    Groups are spread evenly over two, three and four, pairs over side by side and one above the other. A kind with too few held-out
    compositions among `draws` scenes gets fewer prompts.
    """
    rng = random.Random(f"evaluation/{seed}")
    objects = retrieval_objects(rng)[: sizes.objects]
    room: dict[tuple, int] = {("object", name): 1 for name in objects}
    room |= {("tinted object", name): 1 for name in objects}
    room["shape", None] = sizes.shapes
    room |= {("group", count): sizes.groups // 3 for count in (2, 3, 4)}
    room |= {("pair", axis): sizes.pairs // 2 for axis in (HORIZONTAL, VERTICAL)}
    chosen: dict[str, list[Scene]] = {kind: [] for kind in KINDS}
    seen: set[str] = set()
    for _ in range(draws):
        scene = random_scene(rng, held_out=True)
        slot = _slot(scene)
        if room.get(slot, 0) == 0 or scene.composition() in seen:
            continue
        seen.add(scene.composition())
        room[slot] -= 1
        chosen[slot[0]].append(scene)
        # Objects without a colour have few held-out compositions, and may have none.
        if not any(left for (kind, _), left in room.items() if kind != "object"):
            break
    scenes = [(kind, scene) for kind in KINDS for scene in chosen[kind]]
    return [
        Prompt(kind, scene, caption(scene, random.Random(f"wording/{index}"), plain=True).text, _FIRST_SEED + index)
        for index, (kind, scene) in enumerate(scenes)
    ]


def _slot(scene: Scene) -> tuple:
    kind, first = kind_of(scene), scene.items[0]
    if kind in ("object", "tinted object"):
        return kind, first.name
    if kind == "group":
        return kind, first.count
    if kind == "pair":
        return kind, HORIZONTAL if first.place in HORIZONTAL else VERTICAL
    return kind, None


def every(prompts: list[Prompt], share: float) -> list[Prompt]:
    """About `share` of the prompts of each kind, evenly spread, for a quick look."""
    kept = []
    for kind in KINDS:
        of_kind = [prompt for prompt in prompts if prompt.kind == kind]
        wanted = max(1, round(len(of_kind) * share)) if of_kind else 0
        kept += [of_kind[index * len(of_kind) // wanted] for index in range(wanted)]
    return kept


def look(scene: Scene) -> str:
    """Names the picture rather than the words: the same for two compositions that are drawn alike.

    A thing in its natural colour looks as one whose colour is not named; a scene that names no background is drawn on
    white; two things beside each other are one left of the other.
    """
    def plain(item):
        natural = BY_NAME[item.name].natural_colour
        return replace(item, colour=None) if item.colour and item.colour == natural else item

    white_thing = any((item.colour or BY_NAME[item.name].natural_colour) == "white" for item in scene.items)
    background = scene.background or ("pale" if white_thing else "white")
    return Scene(tuple(plain(item) for item in scene.items), background).composition()


def looks(scene: Scene) -> set[str]:
    """Every picture that the scene may be drawn as."""
    if len(scene.items) == 2 and scene.items[0].place == "beside":
        first, second = scene.items
        return {
            look(Scene((replace(first, place=one), replace(second, place=other)), scene.background))
            for one, other in (HORIZONTAL, HORIZONTAL[::-1])
        }
    return {look(scene)}


@dataclass(frozen=True)
class Leaks:
    """How the prompts stand to the scenes that were trained on."""

    training_scenes: int
    compositions: int
    """Prompts whose composition is among the training scenes: must be 0."""
    twins: frozenset[str]
    """Texts of the prompts whose picture is among them under other words ("on white" is drawn as no background is)."""


def leaks(prompts: list[Prompt], scenes_file: Path) -> Leaks:
    """Compares the prompts with the scenes in `scenes.jsonl`."""
    compositions, pictures, count = set(), set(), 0
    with open(scenes_file) as lines:
        for line in lines:
            scene = scene_from_json(line)
            compositions.add(scene.composition())
            pictures |= looks(scene)
            count += 1
    return Leaks(
        count,
        sum(prompt.scene.composition() in compositions for prompt in prompts),
        frozenset(prompt.text for prompt in prompts if looks(prompt.scene) & pictures),
    )


def scenes_like(prompts: list[Prompt], count: int, seed: int) -> list[Scene]:
    """`count` held-out scenes with the kinds in the same proportions as among `prompts`."""
    wanted = [prompts[index * len(prompts) // count].kind for index in range(count)]
    missing = {kind: wanted.count(kind) for kind in KINDS}
    rng = random.Random(f"evaluation-real/{seed}")
    scenes: dict[str, list[Scene]] = {kind: [] for kind in KINDS}
    while any(len(scenes[kind]) < number for kind, number in missing.items()):
        scene = random_scene(rng, held_out=True)
        kind = kind_of(scene)
        if kind and len(scenes[kind]) < missing[kind]:
            scenes[kind].append(scene)
    return [scene for kind in KINDS for scene in scenes[kind]]


def save(prompts: list[Prompt], path: Path) -> None:
    """One JSON object a line: kind, text, seed."""
    lines = [json.dumps({"kind": prompt.kind, "prompt": prompt.text, "seed": prompt.seed}) for prompt in prompts]
    path.write_text("\n".join(lines) + "\n")
