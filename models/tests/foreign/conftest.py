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
        two = {name: value.numpy() for name, value in graph.inputs.items()}
        pick = np.array([0, 1, 1, 0, 1, 0, 0, 1])
        alone = [running.run(graph.outputs, {name: value[row : row + 1] for name, value in two.items()}) for row in (0, 1)]
        for batch in (1, 3, 8):
            outputs = running.run(graph.outputs, {name: value[pick[:batch]] for name, value in two.items()})
            for index, row in enumerate(pick[:batch]):
                for together, single in zip(outputs, alone[row], strict=True):
                    np.testing.assert_array_equal(together[index], single[0])

    return check
