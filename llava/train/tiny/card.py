"""The model card of a trained model, from the run's settings, its curve and the final report."""

from llava.tiny.questions import YES_NO_KINDS
from llava.tiny.worlds import HELDOUT_NUMBERS, PAIRS, SIGN_WORDS, UNSEEN_PAIRS
from llava.train.tiny.packing import vocabulary_size
from llava.train.tiny.pointing import pointing_layers
from llava.train.tiny.run import Trainer
from llava.train.tiny.stages import PAINTED, SHARED_STAGES, STAGES

EXAMPLES = {
    "attr_color": "What color is the cross?",
    "attr_shape": "What shape is the red object?",
    "attr_size": "Is the red cross large or small?",
    "position": "Is the red cross on the left or on the right?",
    "exist": "Is there a red cross?",
    "count": "How many red objects are there?",
    "verify_rel": "Is the red cross above the blue circle?",
    "rel_color": "What color is the cross above the blue circle?",
    "rel_shape": "What shape is the red object above the blue circle?",
    "mme_exist": "Is there a red cross in this image?",
    "mme_count": "Are there 2 red objects in this image?",
    "mme_pos": "Is the red cross above the blue circle? (MME pairs)",
    "mme_color": "Is the cross red?",
    "mme_text": 'Does the sign say "CAT"?',
    "text": "What is written on the sign?",
    "hw_digit": "What digit is on the card?",
}
_SHOWN = 10
_TITLES = {"pruning-aware": "llava-tiny", "plain": "llava-tiny-plain"}
_RECIPES = {
    "pruning-aware": """In the stages from `all` on about two thirds of the batches were pruned while training, drawn
by batch: text→visual attention off in the first third of the layers (in layer 0 half of the time merged into the first
visual token), visual self-attention off there, only 4–32 tokens readable after layer 4, 5 or 6 (those with most
influence on the last prompt token), nothing readable from layer 8, 9 or 10 on. From `hard` on text read nothing either
at the layer that chose the tokens, so that they are read after they were chosen, not before. So the three stages that
VisiPruner relies on are there because training put them there. This model shows what the method does on a model that
has them; it does not show that every model has.""",
    "plain": """No batch was pruned while training: this is the control for the pruning-aware model, from the same
start, with the same steps and pictures.""",
}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".removeprefix("0")


def _kinds_table(report: dict) -> list[str]:
    columns = ("dense", "paper", "image-blind")
    unseen = report["unseen pairs"] or {"kinds": {}}
    lines = ["| kind | example | right | unseen pair | `paper` | image-blind |", "|---|---|---|---|---|---|"]
    for kind, example in EXAMPLES.items():
        dense, paper, blind = (_number(report[column]["kinds"].get(kind)) for column in columns)
        mark = " (yes/no)" if kind in YES_NO_KINDS else ""
        lines.append(
            f"| {kind}{mark} | {example} | {dense} | {_number(unseen['kinds'].get(kind))} | {paper} | {blind} |"
        )
    means = [_number(report[column]["mean"]) for column in columns]
    lines.append(f"| mean | | {means[0]} | {_number(unseen.get('mean'))} | {means[1]} | {means[2]} |")
    return lines


def _stages_table(trainer: Trainer) -> list[str]:
    s = trainer.settings
    grid = trainer.architecture.image_size // trainer.architecture.patch_size
    lines = ["| stage | steps | visual tokens | asked |", "|---|---|---|---|"]
    for stage, steps in zip(STAGES, s.steps, strict=True):
        asked = ", ".join(f"{name} {weight:.0%}" for name, weight in stage.styles) or "dense labels of every patch"
        lines.append(f"| {stage.name} | {steps} | {stage.tokens or grid**2} | {asked} |")
    return lines


def _parts_table(trainer: Trainer) -> list[str]:
    a = trainer.architecture
    patches = (a.image_size // a.patch_size) ** 2
    tower = f"CLIP-style, {a.image_size}×{a.image_size} px, patch {a.patch_size} → {patches} visual tokens"
    layers = f"{a.vision_layers - 1} layers, {a.vision_hidden_size} wide, and one that adds nothing"
    decoder = f"Llama, {a.layers} layers, {a.hidden_size} wide, {a.heads} heads, MLP {a.mlp_size}, context {a.context}"
    return [
        "| part | what |",
        "|---|---|",
        f"| vision tower | {tower}; {layers}, so that `mm_vision_select_layer` −2 reads the last trained |",
        f"| projector | `mlp2x_gelu`, {a.vision_hidden_size} → {a.hidden_size} → {a.hidden_size} |",
        f"| decoder | {decoder} |",
        f"| tokenizer | sentencepiece, {vocabulary_size()} pieces with byte fallback; `vicuna_v1` prompt |",
    ]


def _curve(trainer: Trainer) -> str:
    rows = trainer.curve[:: max(1, len(trainer.curve) // _SHOWN)]
    return " · ".join(f"{row['step']} {_number(row['mean'])}" for row in rows)


def model_card(trainer: Trainer, report: dict) -> str:
    """Return the card as Markdown."""
    s, recipe, greedy = trainer.settings, trainer.recipe, report["greedy"]
    counted = [p.numel() for name, p in trainer.model.named_parameters() if not name.startswith("tower.labels")]
    unseen = ", ".join(" ".join(pair) for pair in UNSEEN_PAIRS)
    shared = ", ".join(stage.name for stage in STAGES[:SHARED_STAGES])
    mean = {name: _number(part["mean"]) for name, part in report.items() if isinstance(part, dict)}
    newline = "\n"
    return f"""# {_TITLES[recipe]}

A LLaVA of {sum(counted) / 1e6:.1f} M parameters that answers short questions about rendered scenes: coloured shapes, a
sign, a card with a handwritten digit. It has the architecture and the on-disk layout of LLaVA-1.5, so the code that
runs `liuhaotian/llava-v1.5-7b` runs this folder, on a laptop CPU. It is a test bench and a teaching model for pruning
visual tokens, nothing more.

{newline.join(_parts_table(trainer))}

## How accurate it is

Share answered exactly right on {report["scenes"]} held-out scenes, in the wording of LLaVA's evaluation files; every
sign string and every handwritten digit there is one that training never showed. "Unseen pair": the questions that take
an object whose colour and shape were never seen together ({unseen}). "`paper`": text blind and
visual tokens apart in the first third of the layers, five visual tokens after the next layer, none from two thirds on,
imitated by masks. "Image-blind": no layer reads the image. Yes/no kinds hold as many "yes" as "no"; relation questions
always have two objects that fit the noun.

{newline.join(_kinds_table(report))}

- Greedy decoding through `load_pretrained_model`, {greedy["scenes"]} scenes: mean {mean["greedy"]}
  (`python -m llava.tiny.accuracy --model-path …`).
- Answers by turn in conversations of three, first to third: {", ".join(_number(v) for v in report["turns"])}.
- Text→visual attention masked in the first quarter of the layers: mean {mean["first quarter masked"]}, in the last
  quarter {mean["last quarter masked"]}. `paper` with no token kept: {mean["paper, none kept"]}.

## How it was trained

`python -m llava.train.tiny --recipe {recipe} --steps {",".join(map(str, s.steps))} --seed {s.seed}`, from scratch,
{s.precision} on `{s.device}`, {trainer.seconds / 60:.0f} minutes with the shared stages (on a CPU, `--recipe both`
trains both at once from stage `{STAGES[SHARED_STAGES].name}` on, which takes each of them longer); batches of
{s.images} pictures with {s.questions} questions each (tower: {s.tower_images} pictures).

{newline.join(_stages_table(trainer))}

Muon for the layers' matrices, AdamW for the rest. The stages {shared} are the same for both recipes.
{_RECIPES[recipe]}
In layers {" and ".join(map(str, pointing_layers(trainer.architecture.layers)))} some heads were also taught where to
look (weight {STAGES[-1].pointing}, falling to {STAGES[-1].final:.0%} of that at the end): half of them at what the
question is about; in `some` and `all` three at different things of it; from `hard` on all of the first layer's at
everything that the question is about, and three of the second layer's at different things. Where they look is therefore
taught, not found. From `hard` on the quoted characters of "Does the sign say …?" were also taught to tell, each at its
own token, whether they are the sign's (weight {STAGES[-1].verdicts}). Each batch had {PAINTED:.0%} more pictures, for
the tower alone: shapes in colours that have no name, at least 80 of 255 away (RGB, Euclidean) from every colour that
has one. Without them the tower knows a shape only in the colours in which it saw it.

Pictures and questions: `llava/tiny/scenes.py`, `llava/tiny/questions.py`; what training may see and what is held out:
`llava/tiny/worlds.py` ({len(UNSEEN_PAIRS)} of {len(PAIRS)} pairs of colour and shape, {len(SIGN_WORDS)} words and
{len(HELDOUT_NUMBERS)} numbers on signs, 297 of scikit-learn's handwritten digits). Mean over the kinds of
{s.held_out} other held-out scenes, after so many steps: {_curve(trainer)}.

## What it cannot do

Anything else. No photographs, no words outside its phrases, no free description (it saw captions of its scenes),
nothing that needs to be known. Conversations have at most four turns, and each question can be answered without the
others. Kinds below .9 in the table are not reliable.

Licence: Apache-2.0, as the repository.
"""
