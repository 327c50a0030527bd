"""What the comparisons with other libraries share. They are skipped only where those libraries are not installed."""

import numpy as np
import pytest
import torch

from muse_models.export.graphs import Graph
from muse_models.export.onnx_file import session
from muse_models.export.storage import Traced

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def rows_are_alike():
    """Runs a graph on 1, 3 and 8 rows and checks each row alone against the same row among others, to the bit."""

    def check(graph: Graph, traced: Traced) -> None:
        running = session(traced.proto())
        two = {name: value.numpy() for name, value in graph.inputs.items() if name not in ("grids", "positions")}

        def run(rows: np.ndarray) -> list[np.ndarray]:
            inputs = {name: value[rows] for name, value in two.items()}
            if "grids" not in graph.inputs:
                return running.run(graph.outputs, inputs)
            # A step: each row with a grid of its own, and logits everywhere.
            count, size = inputs["tokens"].shape
            places = {"grids": np.arange(count), "positions": np.arange(count * size)}
            (logits,) = running.run(graph.outputs, inputs | places)
            return [logits.reshape(count, size, -1)]

        pick = np.array([0, 1, 1, 0, 1, 0, 0, 1])
        alone = [run(np.array([row])) for row in (0, 1)]
        for batch in (1, 3, 8):
            outputs = run(pick[:batch])
            for index, row in enumerate(pick[:batch]):
                for together, single in zip(outputs, alone[row], strict=True):
                    np.testing.assert_array_equal(together[index], single[0])

    return check
