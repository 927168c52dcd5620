"""Writing answers files for the scorers' tests."""

import json


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_answers(path, texts):
    """An answers file from question id → text (or a list of pairs, for doubled ids)."""
    pairs = texts.items() if isinstance(texts, dict) else texts
    return write_jsonl(path, [{"question_id": i, "prompt": "?", "text": text, "metadata": {}} for i, text in pairs])


def last_json(output):
    return json.loads(output.rstrip("\n").split("\n")[-1])
