"""The notebooks run from the first cell to the last, with few epochs."""

import re

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SHORT = {
    r"EPOCHS, FEW_EPOCHS = \d+, \d+": "EPOCHS, FEW_EPOCHS = 4, 4",
    r"^EPOCHS = \d+": "EPOCHS = 4",
    r"^STEPS = \d+": "STEPS = 4",
}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="make docs installs it")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for pattern, short in SHORT.items():
            cell.source = re.sub(pattern, short, cell.source, flags=re.M)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()


def test_notebooks_were_executed_and_are_small():
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        text = path.read_text()
        assert '"image/png"' in text
        assert '"output_type": "error"' not in text
        assert len(text) < 200_000
