"""What a saved notebook must and must not contain. That its outputs are true, nbval checks."""

import json
import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
PATHS = [p for p in sorted(FOLDER.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
IGNORED = "nbval-ignore-output"


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def test_the_notebooks_are_there():
    assert {"00_start_here.ipynb", "07_training_run.ipynb"} <= {p.name for p in PATHS}


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
class TestNotebook:
    def test_is_valid_and_small(self, path):
        nbformat.validate(nbformat.read(path, as_version=4))
        assert path.stat().st_size < 1_500_000

    def test_was_run_from_top_to_bottom(self, path):
        cells = code_cells(path)
        assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
        for cell in cells:
            for output in cell.outputs:
                assert output.get("execution_count", cell.execution_count) == cell.execution_count

    def test_has_outputs_to_compare(self, path):
        compared = [c for c in code_cells(path)
                    if c.outputs and IGNORED not in c.metadata.get("tags", [])]
        assert len(compared) >= (len(code_cells(path)) - 2) / 2  # set-up cells print nothing

    def test_shows_no_error_and_no_warning(self, path):
        for cell in code_cells(path):
            for output in cell.outputs:
                assert output.output_type != "error"
                assert output.get("name") != "stderr", output.text
                assert "Warning" not in output.get("text", "")

    def test_keeps_no_widget_state_and_no_timestamps(self, path):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        assert "widgets" not in notebook["metadata"]
        assert not any("execution" in cell["metadata"] for cell in notebook["cells"])

    def test_has_no_trailing_semicolon_and_no_long_line(self, path):
        for cell in code_cells(path):
            assert not cell.source.rstrip().endswith(";")
            assert max(map(len, cell.source.splitlines())) <= 88

    def test_a_cell_that_is_not_compared_asserts_or_only_shows(self, path):
        """Ignored outputs must be few, and no cell may be skipped."""
        cells = code_cells(path)
        tags = [tag for c in cells for tag in c.metadata.get("tags", [])]
        assert "nbval-skip" not in tags and "NBVAL" not in path.read_text(encoding="utf-8")
        assert tags.count(IGNORED) <= max(1, len(cells) // 5)

    def test_every_picture_has_its_numbers_in_words(self, path):
        for cell in code_cells(path):
            for output in cell.outputs:
                data = output.get("data", {})
                if "image/png" in data:
                    assert "<" not in data["text/plain"] and len(data["text/plain"]) > 10

    def test_every_details_box_is_closed(self, path):
        text = path.read_text(encoding="utf-8")
        assert text.count("<details>") == text.count("</details>")
        assert not re.search(r"/(home|root|Users|tmp)/", text)
