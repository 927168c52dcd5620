"""Artificial data sets in the published formats, for the tests of llava.eval.prepare."""

import base64
import io
import json
import zipfile

from PIL import Image

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def picture(color, kind="JPEG", size=(8, 6)):
    """The bytes of a small image; another color gives other bytes."""
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, kind)
    return data.getvalue()


def as_base64(data):
    return base64.b64encode(data).decode()


def write_zip(path, files):
    """A zip archive from member name → bytes or text."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


GQA_QUESTIONS = [
    {"question_id": "1", "image": "n1.jpg", "text": f"Is it red?\n{SHORT}", "category": "default"},
    {"question_id": "2", "image": "n1.jpg", "text": f"What is it?\n{SHORT}", "category": "default"},
    {"question_id": "3", "image": "n2.jpg", "text": f"What is it?\n{SHORT}", "category": "default"},
]
GQA_REFERENCES = {
    "1": {"question": "Is it red?", "answer": "yes", "imageId": "n1"},
    "2": {"question": "What is it?", "answer": "cup", "imageId": "n1"},
    "3": {"question": "What is it?", "answer": "hat", "imageId": "n2"},
}
