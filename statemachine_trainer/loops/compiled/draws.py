"""Random numbers in a graph: all of them are drawn, as they are without the compiler."""

from __future__ import annotations

import operator

import torch
from torch.fx import GraphModule, Node

from statemachine_trainer.loops.compiled.compiled_errors import NotCapturable
from statemachine_trainer.loops.compiled.private import keeps_order_of_draws


def keep_draws(graph: GraphModule) -> int:
    """Make outputs of those random numbers that nothing is computed from.

    The compiler would not draw them otherwise, and all that are drawn later would be others.

    Args:
        graph: Of a program; is changed.

    Returns:
        How many outputs there are more, at the end.
    """
    drawn = [node for node in graph.graph.nodes if draws(node)]
    needed = _needed(graph)
    idle = [node for node in drawn if node not in needed]
    if idle:
        output = next(node for node in graph.graph.nodes if node.op == "output")
        with graph.graph.inserting_before(output):
            kept = [_first_of(graph, node) for node in idle]
        output.args = ((*output.args[0], *kept),)
        graph.recompile()
    return len(idle)


def check_order(graph: GraphModule) -> None:
    """Refuse a graph whose random numbers this torch may draw in another order.

    Raises:
        NotCapturable: It may.
    """
    if sum(map(draws, graph.graph.nodes)) > 1 and not keeps_order_of_draws():
        raise NotCapturable(
            f"several random numbers are drawn, which the compiler of torch {torch.__version__} "
            "may do in another order. Use same_random=False, or a later torch"
        )


def draws(node: Node) -> bool:
    """Tell whether an operation draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _first_of(graph: GraphModule, node: Node) -> Node:
    several = isinstance(node.meta.get("val"), tuple | list)
    return graph.graph.call_function(operator.getitem, (node, 0)) if several else node


def _needed(graph: GraphModule) -> set[Node]:
    """Return the nodes that an output, or a tensor that is written to, depends on."""
    output = next(node for node in graph.graph.nodes if node.op == "output")
    needed: set[Node] = set()
    # From the last to the first: what is written later counts for what was read before.
    for node in reversed(graph.graph.nodes):
        if node is output or node in needed or _writes_to_needed(node, needed):
            needed.add(node)
            needed.update(node.all_input_nodes)
    return needed


def _writes_to_needed(node: Node, needed: set[Node]) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return False
    written = node.all_input_nodes
    return any(one.op == "placeholder" or one in needed for one in written)
