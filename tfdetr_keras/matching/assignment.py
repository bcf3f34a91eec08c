"""Linear sum assignment for batches of cost matrices, exact, in the graph of whatever backend Keras runs on.

The problem (min Σᵢ cᵢ,ₛ₍ᵢ₎ over the one-to-one maps s of rows to columns) has the dual max Σᵢ uᵢ + Σⱼ vⱼ subject to
uᵢ + vⱼ ≤ cᵢⱼ and vⱼ ≤ 0, with vⱼ = 0 for the columns left over. Shortest augmenting paths keep such u, v and a partial
assignment whose pairs are tight (uᵢ + vⱼ = cᵢⱼ), and assign one more row at a time: Dijkstra's algorithm on the reduced
costs cᵢⱼ − uᵢ − vⱼ ≥ 0 finds the cheapest alternating path from the row to a free column, the pairs along the path are
exchanged, and v is lowered where the search has been. Only v is stored, as uᵢ = cᵢⱼ − vⱼ for the row's own column j.

The implementation suits machines that compute on whole arrays:
- Each row first claims its cheapest column (u = row minimum, v = 0); the rows that lose their claim are searched for.
- A few lanes work side by side, each on a problem of its own and at its own point: closing one column of its search, or
  exchanging one pair of its path. A lane whose problem is solved takes the next, those with most rows to search first,
  so that a hard problem does not delay the others and the costs in use stay in the cache.
- All lanes take one step per iteration of a single flat loop over arrays of `(lanes, columns)`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from keras import ops

from tfdetr_keras.backend.compiler import compiled

# Problems worked on at a time: enough to pay for an iteration's fixed cost, few enough for their costs to stay cached.
LANES = 32
# Sizes unknown until run time are rounded up to a multiple of this, as the solver is compiled anew for each shape.
SIZE_STEP = 8
# Larger costs are cut to this, so that sums of costs along a path stay within float32.
LARGEST_COST = 1e30


def linear_sum_assignment(cost: Any, row_mask: Any = None, column_mask: Any = None) -> Any:
    """Assign rows to columns at the least total cost, for each matrix of a batch.

    This is `scipy.optimize.linear_sum_assignment` for all matrices at once and inside the graph: it finds min(rows,
    columns) pairs whose costs sum to the least possible, counted over the unmasked rows and columns; among equally good
    assignments it may return any. The solver is compiled by the backend (XLA on TensorFlow and JAX), also in eager
    calls; no gradient flows through it.

    One problem takes O(min(rows, columns)² · max(rows, columns)) operations at worst, and near O(rows · columns) when
    most rows have a cheapest column of their own. The arithmetic is float32, on costs relative to their problem's
    least cost. It is compiled once per shape, which takes two seconds: keep shapes fixed and mask the padding.
    Sizes unknown while a TensorFlow graph is traced are rounded up to multiples of 8 so that few shapes occur; then let
    rows be the shorter side, since only known sizes tell which side to search from.

    Args:
        cost: `(..., rows, columns)` float or int, with any number of leading batch axes, or none. An entry that is
            NaN or infinite, of either sign, is a last resort: it counts as one finite cost so large that as few such
            pairs as possible are made. Finite entries are clipped to ±1e30.
        row_mask: `(..., rows)` bool, True for real rows, False for padding; None if all rows are real.
        column_mask: `(..., columns)` bool, likewise.

    Returns:
        `(..., rows)` int32: the column of each row, −1 for rows that get none.

    Raises:
        ValueError: if `cost` has fewer than two axes, or a mask's shape does not fit it.

    Source:
        D. F. Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions on Aerospace and
        Electronic Systems 52(4), 2016; R. Jonker and A. Volgenant, "A shortest augmenting path algorithm for dense and
        sparse linear assignment problems", Computing 38, 1987.
    """
    cost = ops.stop_gradient(ops.cast(ops.convert_to_tensor(cost), "float32"))
    if len(cost.shape) < 2:
        raise ValueError(f"cost must have shape (..., rows, columns), got {tuple(cost.shape)}")
    row_mask = _checked_mask("row_mask", row_mask, cost.shape[:-1])
    column_mask = _checked_mask("column_mask", column_mask, (*cost.shape[:-2], cost.shape[-1]))

    shape = ops.shape(cost)
    rows, columns = shape[-2:]
    if 0 in tuple(cost.shape):
        return ops.full(shape[:-1], -1, dtype="int32")
    problems = math.prod(shape[:-2])
    if len(shape) != 3:
        cost = ops.reshape(cost, (problems, rows, columns))
        row_mask = None if row_mask is None else ops.reshape(row_mask, (problems, rows))
        column_mask = None if column_mask is None else ops.reshape(column_mask, (problems, columns))
    if all(isinstance(size, int) for size in (problems, rows, columns)):
        assigned = _solve(cost, row_mask, column_mask)
    else:
        assigned = _solve(*_round_up(cost, row_mask, column_mask))[:problems, :rows]
    return assigned if len(shape) == 3 else ops.reshape(assigned, shape[:-1])


def _checked_mask(name: str, mask: Any, expected: tuple[int | None, ...]) -> Any:
    if mask is None:
        return None
    mask = ops.cast(ops.convert_to_tensor(mask), "bool")
    fits = len(mask.shape) == len(expected) and all(
        size == wanted or size is None or wanted is None for size, wanted in zip(mask.shape, expected, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must have shape {tuple(expected)} to fit the cost, got {tuple(mask.shape)}")
    return mask


def padding_of(size: Any) -> Any:
    """Return how much to add to an axis of unknown static size to make it a non-zero multiple of `SIZE_STEP`."""
    return ops.maximum(size + -size % SIZE_STEP, SIZE_STEP) - size


def _round_up(cost: Any, row_mask: Any, column_mask: Any) -> tuple[Any, Any, Any]:
    """Pad the axes whose size is known only at run time (so that none is zero) and mask the padding."""
    sizes = ops.shape(cost)
    extra = [0 if isinstance(size, int) else padding_of(size) for size in sizes]
    row_mask = ops.ones(sizes[:2], "bool") if row_mask is None else row_mask
    row_mask = ops.pad(row_mask, [[0, extra[0]], [0, extra[1]]], constant_values=False)
    if column_mask is not None or not isinstance(sizes[2], int):
        column_mask = ops.ones((sizes[0], sizes[2]), "bool") if column_mask is None else column_mask
        column_mask = ops.pad(column_mask, [[0, extra[0]], [0, extra[2]]], constant_values=False)
    return ops.pad(cost, [[0, size] for size in extra]), row_mask, column_mask


@compiled
def _solve(cost: Any, row_mask: Any, column_mask: Any) -> Any:
    """Solve `(problems, rows, columns)`, no size of which is zero; search from the shorter side if it is known."""
    problems, rows, columns = ops.shape(cost)
    sizes_known = isinstance(rows, int) and isinstance(columns, int)
    if sizes_known and rows > columns:
        return _assign_rows(ops.swapaxes(cost, 1, 2), column_mask, row_mask, rows_can_be_left=row_mask is not None)
    rows_can_be_left = column_mask is not None or not sizes_known
    owner = _assign_rows(cost, row_mask, column_mask, rows_can_be_left)
    # The inverse of `owner`; free columns write to a slot that is cut off.
    slot = ops.arange(problems, dtype="int32")[:, None] * (rows + 1) + ops.where(owner < 0, rows, owner)
    column = ops.broadcast_to(ops.arange(columns, dtype="int32"), ops.shape(owner))
    assigned = ops.full((problems * (rows + 1),), -1, dtype="int32")
    assigned = ops.scatter_update(assigned, ops.reshape(slot, (-1, 1)), ops.reshape(column, (-1,)))
    return ops.reshape(assigned, (problems, rows + 1))[:, :rows]


def _assign_rows(cost: Any, row_mask: Any, column_mask: Any, rows_can_be_left: bool) -> Any:
    """Return the row of each column, `(problems, columns)` int32, −1 for free columns."""
    problems, rows, _ = ops.shape(cost)
    row_mask = ops.ones((problems, rows), "bool") if row_mask is None else row_mask
    cost = _relative_cost(cost, row_mask, column_mask)
    owner, unassigned = _claim_cheapest(cost, row_mask)
    return _search(cost, owner, unassigned, rows_can_be_left)


def _relative_cost(cost: Any, row_mask: Any, column_mask: Any) -> Any:
    """Return costs relative to the least of their problem.

    Costs that are not finite become a finite penalty, and masked columns +inf.
    """
    finite = ops.logical_and(ops.abs(cost) < math.inf, row_mask[:, :, None])
    if column_mask is not None:
        finite = ops.logical_and(finite, column_mask[:, None, :])
    cost = ops.clip(cost, -LARGEST_COST, LARGEST_COST)
    lowest = ops.min(ops.where(finite, cost, math.inf), axis=(1, 2))
    highest = ops.max(ops.where(finite, cost, -math.inf), axis=(1, 2))
    lowest = ops.where(lowest < math.inf, lowest, 0.0)
    # One more penalty costs more than all other pairs of the problem can save, and is no larger than that needs.
    spread = ops.where(highest > lowest, highest - lowest, 1.0)
    penalty = spread * (1.0 + ops.cast(ops.shape(cost)[1], "float32"))
    cost = ops.where(finite, cost - lowest[:, None, None], penalty[:, None, None])
    return cost if column_mask is None else ops.where(column_mask[:, None, :], cost, math.inf)


def _claim_cheapest(cost: Any, row_mask: Any) -> tuple[Any, Any]:
    """Assign every column to one of the rows that find it cheapest.

    Returns:
        The row of each column, `(problems, columns)` int32, −1 for free columns; and `(problems, rows)` bool, True for
        the real rows that got no column.
    """
    problems, rows, columns = ops.shape(cost)
    row, column = ops.arange(rows, dtype="int32"), ops.arange(columns, dtype="int32")
    least = ops.min(cost, axis=2, keepdims=True)
    cheapest = ops.min(ops.where(cost <= least, column, columns - 1), axis=2)
    claims = ops.logical_and(row_mask, least[:, :, 0] < math.inf)
    claimed = ops.reshape(ops.arange(problems, dtype="int32")[:, None] * columns + cheapest, (-1,))
    claimant = ops.reshape(ops.where(claims, row, -1), (-1,))
    owner = ops.maximum(ops.segment_max(claimant, claimed, num_segments=problems * columns), -1)
    won = ops.reshape(ops.equal(ops.take(owner, claimed), claimant), (problems, rows))
    return ops.reshape(owner, (problems, columns)), ops.logical_and(
        row_mask, ops.logical_not(ops.logical_and(claims, won))
    )


class _Lanes(NamedTuple):
    """The state of each lane; all arrays are `(lanes,)` or `(lanes, columns)`, except the first and the last.

    A lane grows the tree of shortest alternating paths from its root row, one column per iteration, until it closes a
    free column; then it walks back along the path, one pair per iteration. An iteration's results about v and
    the path costs are written by the next one, so that each array is passed over once.
    """

    started: Any  # () problems handed out so far
    problem: Any  # number of problems = idle
    root: Any  # the row to be assigned
    row: Any  # the row whose edges are looked at
    column: Any  # the column by which `row` was reached, −1 at the root; on the way back, the next to change its row
    base: Any  # v of `column` plus the path's cost to it; −inf on the way back
    new_search: Any
    new_problem: Any
    closed: Any  # the column closed last, −1 for none
    distance: Any  # the path's cost to it
    total: Any  # the path's cost to the free column, once, when it was just found; otherwise 0
    unassigned_cost: Any  # of the cheapest path to a row that could be left without a column instead
    unassigned_column: Any  # that row's column
    path_cost: Any  # (lanes, columns), −inf = closed
    predecessor: Any  # (lanes, columns) the column before it on the path, −1 = root
    v: Any  # (lanes, columns)
    owner: Any  # (problems + 1, columns) the row of each column, −1 = free; idle lanes scribble on the last problem


def _search(cost: Any, owner: Any, unassigned: Any, rows_can_be_left: bool) -> Any:
    """Assign the unassigned rows by shortest augmenting paths.

    If `rows_can_be_left`, a problem may have more rows than columns. When a search closes all columns and finds none
    free, one of the rows it has reached is left unassigned, namely the one at the end of the cheapest path.
    """
    problems, rows, columns = ops.shape(cost)
    number_of_lanes = min(problems, LANES) if isinstance(problems, int) else ops.minimum(problems, LANES)
    lane, index = ops.arange(number_of_lanes, dtype="int32"), ops.arange(columns, dtype="int32")
    cost = ops.reshape(cost, (problems * rows, columns))

    # next_row[p, r + 1] is the first unassigned row after r, or `rows`.
    row = ops.arange(rows, dtype="int32")
    is_next = ops.logical_and(unassigned[:, None, :], row > ops.arange(-1, rows, dtype="int32")[:, None])
    next_row = ops.reshape(ops.min(ops.where(is_next, row, rows), axis=2), (-1,))
    searches = ops.sum(ops.cast(unassigned, "int32"), axis=1)
    queue = ops.cast(ops.argsort(-searches), "int32")
    queued = ops.sum(ops.cast(searches > 0, "int32"))

    def pick(table: Any, major: Any, minor: Any) -> Any:
        return ops.take(ops.reshape(table, (-1,)), major * columns + minor)

    def problem_of(turn: Any) -> Any:
        return ops.where(turn < queued, ops.take(queue, ops.minimum(turn, problems - 1)), problems)

    def row_after(problem: Any, row: Any) -> Any:
        return ops.take(next_row, ops.minimum(problem, problems - 1) * (rows + 1) + ops.minimum(row, rows - 1) + 1)

    def step(*state: Any) -> _Lanes:
        s = _Lanes(*state)
        # Look along the edges of `row`: its u − distance follows from u + v = c on its own pair (row, column).
        just_closed = index == s.closed[:, None]
        v = s.v + ops.where(just_closed, s.distance[:, None], 0.0)
        v = v - ops.where(s.path_cost == -math.inf, s.total[:, None], 0.0)
        v = ops.where(s.new_problem[:, None], 0.0, v)
        edges = ops.take(cost, ops.minimum(s.problem, problems - 1) * rows + s.row, axis=0)
        offset = ops.where(s.closed < 0, 0.0, pick(edges, lane, ops.maximum(s.closed, 0)) - s.base)
        offset = ops.where(s.base > -math.inf, offset, -math.inf)
        via_row = edges - v - offset[:, None]
        shorter = ops.logical_or(s.new_search[:, None], via_row < s.path_cost)
        path_cost = ops.where(just_closed, -math.inf, ops.where(shorter, via_row, s.path_cost))
        # Asking for equality and not for `shorter` spares a copy of the old path costs.
        predecessor = ops.where(via_row == path_cost, s.column[:, None], s.predecessor)

        # Close the column that is nearest, a free one if there is a choice.
        searching = offset > -math.inf
        distance = ops.min(ops.where(path_cost == -math.inf, math.inf, path_cost), axis=1)
        taken = ops.take(s.owner, s.problem, axis=0) >= 0
        rank = ops.where(taken, index + columns, index)
        nearest = ops.min(ops.where(path_cost == distance[:, None], rank, 2 * columns - 1), axis=1)
        closes = ops.logical_and(searching, nearest >= columns)
        column = ops.where(searching, ops.where(nearest < columns, nearest, nearest - columns), s.column)
        before = pick(predecessor, lane, column)
        total = ops.where(ops.logical_and(searching, nearest < columns), distance, 0.0)
        unassigned_cost, unassigned_column = s.unassigned_cost, s.unassigned_column
        exchanges = ops.logical_not(closes)
        if rows_can_be_left:
            cheaper = ops.logical_or(s.new_search, -offset < unassigned_cost)
            unassigned_cost = ops.where(cheaper, -offset, unassigned_cost)
            unassigned_column = ops.where(cheaper, s.column, unassigned_column)
            exhausted = ops.logical_and(searching, distance == math.inf)
            closes = ops.logical_and(closes, ops.logical_not(exhausted))
            total = ops.where(exhausted, unassigned_cost, total)
            before = ops.where(exhausted, unassigned_column, before)
            exchanges = ops.logical_not(ops.logical_or(closes, exhausted))

        # Or exchange one pair of the path: the column goes to the row by which it was reached.
        own_row = pick(s.owner, s.problem, column)
        row_before = ops.where(before < 0, s.root, pick(s.owner, s.problem, ops.maximum(before, 0)))
        place = s.problem * columns + column
        flat_owner = ops.reshape(s.owner, (-1,))
        flat_owner = ops.scatter_update(flat_owner, place[:, None], ops.where(exchanges, row_before, own_row))

        # Go on with the column's row, the column before, the next row or the next problem.
        ends = ops.logical_and(ops.logical_not(closes), before < 0)
        root = ops.where(ends, row_after(s.problem, s.root), s.root)
        new_problem = ops.logical_and(root >= rows, s.problem < problems)
        turns = ops.cumsum(ops.cast(new_problem, "int32"))
        problem = ops.where(new_problem, problem_of(s.started + turns - 1), s.problem)
        idle = problem == problems
        root = ops.where(new_problem, row_after(problem, -1), root)
        searches_on = ops.logical_and(ends, ops.logical_not(idle))
        base = ops.where(closes, pick(v, lane, column) + distance, ops.where(searches_on, 0.0, -math.inf))
        return _Lanes(
            started=s.started + turns[-1],
            problem=problem,
            root=root,
            row=ops.where(closes, own_row, ops.minimum(root, rows - 1)),
            column=ops.where(idle, 0, ops.where(closes, column, ops.where(ends, -1, before))),
            base=base,
            new_search=ends,
            new_problem=new_problem,
            closed=ops.where(closes, column, -1),
            distance=distance,
            total=total,
            unassigned_cost=unassigned_cost,
            unassigned_column=unassigned_column,
            path_cost=path_cost,
            predecessor=predecessor,
            v=v,
            owner=ops.reshape(flat_owner, ops.shape(s.owner)),
        )

    problem = problem_of(lane)
    root = row_after(problem, -1)
    nothing = ops.zeros((number_of_lanes,), "float32")
    none = ops.full((number_of_lanes,), -1, "int32")
    always = ops.ones((number_of_lanes,), "bool")
    table = ops.zeros((number_of_lanes, columns), "float32")
    start = _Lanes(
        started=ops.cast(number_of_lanes, "int32"),
        problem=problem,
        root=root,
        row=ops.minimum(root, rows - 1),
        column=ops.where(problem == problems, 0, -1),
        base=ops.where(problem == problems, -math.inf, 0.0),
        new_search=always,
        new_problem=always,
        closed=none,
        distance=nothing,
        total=nothing,
        unassigned_cost=nothing,
        unassigned_column=none,
        path_cost=table,
        predecessor=ops.cast(table, "int32"),
        v=table,
        owner=ops.concatenate([owner, ops.full((1, columns), -1, "int32")], axis=0),
    )
    end = _Lanes(*ops.while_loop(lambda *state: ops.any(_Lanes(*state).problem < problems), step, tuple(start)))
    return end.owner[:problems]
