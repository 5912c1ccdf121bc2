"""Mistakes as newcomers make them: each is an error that names loop, state, event and the way out.

What `refuse` is given are the words that somebody who reads the message needs.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any, ClassVar, Literal

import pytest

from statemachine_trainer import EpochLoop, FitLoop, Trainer
from statemachine_trainer.machine import Driver, Loop, field, place
from statemachine_trainer.machine.errors import (
    LoopDefinitionError,
    PlaceNotNamed,
    StateMachineError,
    UnexpectedEvent,
)


class Leaf(Loop):
    initial = "work"

    def work(self) -> Literal["done"]:
        return "done"


class Walk(Loop):
    """A right loop, which the wrong ones below vary."""

    initial = "set_out"
    transitions: ClassVar[Any] = [["left", "set_out", "arrive"]]
    outcomes: ClassVar[Any] = ("arrived",)

    def set_out(self) -> Literal["left"]:
        return "left"

    def arrive(self) -> Literal["arrived"]:
        return "arrived"


def refuse(root: Any, *said: str) -> None:
    """Building must fail with an error of ours, and its message must say all of this."""
    with pytest.raises(StateMachineError) as caught:
        Driver(root() if isinstance(root, type) else root, name="walk")
    for part in said:
        assert part in str(caught.value), str(caught.value)


def run(root: Loop) -> str | None:
    driver = Driver(root, name="walk")
    driver.start()
    return driver.run()


def test_the_right_loop_runs() -> None:
    assert run(Walk()) == "arrived"


# -- transitions -----------------------------------------------------------------------------------


def test_a_typo_in_the_event_of_a_transition() -> None:
    class Typo(Walk):
        transitions = [["lfet", "set_out", "arrive"]]

    refuse(Typo, "'walk' (Typo)", "'set_out'", "'lfet'", "Did you mean 'left'?")


def test_a_typo_in_the_state_that_a_transition_leads_to() -> None:
    class Typo(Walk):
        transitions = [["left", "set_out", "arive"]]

    refuse(Typo, "'walk' (Typo)", "'arive'", "Did you mean 'arrive'?")


def test_source_and_event_in_the_wrong_order() -> None:
    class Turned(Walk):
        transitions = [["set_out", "left", "arrive"]]

    refuse(Turned, "'walk' (Turned)", "'left'", "no state", "[event, source, dest]")


@pytest.mark.parametrize("brackets", [list, tuple])
def test_one_transition_without_the_brackets_around_it(brackets: Any) -> None:
    class Flat(Walk):
        transitions = brackets(["left", "set_out", "arrive"])

    refuse(Flat, "Flat.transitions", "[['left', 'set_out', 'arrive']]")


def test_a_transition_that_is_too_short() -> None:
    class Short(Walk):
        transitions = [["left", "set_out"]]

    refuse(Short, "Short.transitions", "['left', 'set_out']", "[event, source, dest]")


def test_tuples_do_as_well_as_lists() -> None:
    class Tuples(Walk):
        transitions = (("left", "set_out", "arrive"),)

    assert run(Tuples()) == "arrived"


@pytest.mark.parametrize("wrong", [None, {"left": ("set_out", "arrive")}])
def test_transitions_that_are_no_list(wrong: Any) -> None:
    class Wrong(Walk):
        transitions = wrong

    refuse(Wrong, "Wrong.transitions", "list", '[["event", "source", "dest"], ...]')


def test_two_transitions_of_which_the_second_is_never_taken() -> None:
    class Twice(Walk):
        transitions = [["left", "set_out", "arrive"], ["left", "set_out", "rest"]]

        def rest(self) -> Literal["arrived"]:
            return "arrived"

    refuse(Twice, "'walk' (Twice)", "'left'", "'set_out'", "'rest'", "never taken", "condition")


def test_a_path_into_an_inner_loop_as_the_destination() -> None:
    class Reaching(Walk):
        transitions = [["left", "set_out", "inner.work"]]

    refuse(Reaching, "'walk' (Reaching)", "'inner.work'", "here 'inner'", "`entries`")


def test_a_condition_that_does_not_exist() -> None:
    class Guarded(Walk):
        transitions = [["left", "set_out", "arrive", "is_lihgt"], ["left", "set_out", "set_out"]]

        def is_light(self) -> bool:
            return True

    refuse(Guarded, "'walk' (Guarded)", "'left'", "'is_lihgt'", "Did you mean 'is_light'?")


def test_an_event_that_is_taken_only_under_a_condition() -> None:
    class Guarded(Walk):
        transitions = [["left", "set_out", "arrive", "is_light"]]

        def is_light(self) -> bool:
            return True

    refuse(Guarded, "'walk.set_out'", "'left'", "(Guarded)", "without a condition")


def test_a_loop_that_never_ends() -> None:
    class Endless(Loop):
        initial = "turn"
        transitions = [["turned", "turn", "turn"]]

        def turn(self) -> Literal["turned"]:
            return "turned"

    refuse(Endless, "'walk' (Endless)", "'turn'", "no transition for")


# -- declarations ----------------------------------------------------------------------------------


def test_initial_forgotten() -> None:
    class Nowhere(Loop):
        def work(self) -> Literal["done"]:
            return "done"

    refuse(Nowhere, "'walk' (Nowhere)", "begins", "`initial = ...`")


def test_initial_as_the_method_itself() -> None:
    class Itself(Walk):
        initial = Walk.set_out  # type: ignore[assignment]

    refuse(Itself, "'walk' (Itself)", '`initial = "set_out"`')


@pytest.mark.parametrize("name", ["outcome", "transition", "transitons"])
def test_a_declaration_that_is_misspelt(name: str) -> None:
    misspelt = type("Misspelt", (Walk,), {name: ("arrived",)})
    refuse(misspelt, "'walk' (Misspelt)", repr(name), "Did you mean `")


def test_outcomes_forgotten_at_the_root() -> None:
    class Forgetful(Walk):
        outcomes = ()

    refuse(Forgetful, "'walk.arrive'", "'arrived'", "`outcomes = ('arrived',)` in Forgetful")


def test_the_class_in_place_of_a_loop() -> None:
    with pytest.raises(StateMachineError, match=r"the class Walk: write `Walk\(\)`"):
        Driver(Walk)  # type: ignore[arg-type]


# -- states ----------------------------------------------------------------------------------------


def test_a_state_without_an_annotation() -> None:
    class Silent(Loop):
        initial = "work"

        def work(self):  # type: ignore[no-untyped-def]  # as a newcomer would write it
            return "done"

    refuse(Silent, "'walk.work' (Silent.work)", 'def work(self) -> Literal["done"]')


def test_a_state_annotated_with_the_event_without_literal() -> None:
    class Bare(Walk):
        def arrive(self) -> arrived:  # type: ignore[name-defined]  # noqa: F821
            return "arrived"

    refuse(Bare, "'walk.arrive'", '-> Literal["arrived"]')


def test_a_literal_of_a_name_that_is_not_there() -> None:
    class Named(Walk):
        def arrive(self) -> Literal[ARRIVED]:  # type: ignore[name-defined]  # noqa: F821
            return "arrived"

    refuse(Named, "'walk.arrive'", "'ARRIVED' is not defined", "events in quotes")


def test_a_literal_of_what_is_no_text() -> None:
    class Truth(Walk):
        def arrive(self) -> Literal[True]:  # type: ignore[override]
            return True

    refuse(Truth, "'walk.arrive'", "True", 'Literal["one", "other"]')


def test_a_state_that_answers_with_nothing() -> None:
    class Empty(Walk):
        def arrive(self) -> None:  # type: ignore[override]
            pass

    refuse(Empty, "'walk.arrive'", "no event", 'return "done"')


def test_a_state_that_forgets_to_return() -> None:
    class Forgetful(Walk):
        def arrive(self) -> Literal["arrived"]:  # type: ignore[return]
            sum([1, 2])

    refuse(Forgetful, "'walk.arrive' (Forgetful.arrive)", "never returns", '`return "arrived"`')


def test_a_state_that_forgets_to_return_on_one_way_only() -> None:
    class Sometimes(Walk):
        ready = False

        def arrive(self) -> Literal["arrived"]:  # type: ignore[return]
            if self.ready:
                return "arrived"

    with pytest.raises(UnexpectedEvent, match=r"answered None.* forget to return an event"):
        run(Sometimes())


def test_a_state_without_a_body_is_a_sketch_that_can_be_drawn() -> None:
    class Sketch(Walk):
        def arrive(self) -> Literal["arrived"]: ...  # type: ignore[empty-body]

    assert Driver(Sketch(), name="walk").machine.leaves() == ["walk.set_out", "walk.arrive"]


def test_a_state_that_returns_what_it_does_not_declare() -> None:
    class Typo(Walk):
        def arrive(self) -> Literal["arrived"]:
            return "arived" if len("ab") > 1 else "arrived"  # type: ignore[return-value]

    refuse(Typo, "'walk.arrive' (Typo.arrive)", "'arived'", "Did you mean 'arrived'?")


def test_a_state_that_is_a_property() -> None:
    class Proper(Walk):
        @property
        def arrive(self) -> Literal["arrived"]:  # type: ignore[override]
            return "arrived"

    refuse(Proper, "'arrive'", "'walk' (Proper)", "@property")


def test_a_state_without_self() -> None:
    class Selfless(Walk):
        def arrive() -> Literal["arrived"]:  # type: ignore[misc]
            return "arrived"

    refuse(Selfless, "'walk.arrive' (Selfless.arrive)", "`self`")


def test_a_state_that_wants_the_batch_as_an_argument() -> None:
    class Wanting(Walk):
        def arrive(self, batch: object) -> Literal["arrived"]:  # type: ignore[override]
            return "arrived"

    refuse(Wanting, "'walk.arrive' (Wanting.arrive)", "'batch'", "`context`")


def test_a_state_that_is_asynchronous_or_yields() -> None:
    class Async(Walk):
        async def arrive(self) -> Literal["arrived"]:  # type: ignore[override]
            return "arrived"

    class Yielding(Walk):
        def arrive(self) -> Any:
            yield "arrived"

    refuse(Async, "'walk.arrive' (Async.arrive)", "coroutine", "plain call")
    refuse(Yielding, "'walk.arrive' (Yielding.arrive)", "generator", "plain call")


def test_a_state_that_was_written_and_left_out_of_the_transitions() -> None:
    class Pausing(Walk):
        transitions = [["left", "set_out", "arrive"]]

        def take_a_break(self) -> Literal["rested"]:
            return "rested"

    refuse(Pausing, "'take_a_break'", "'walk' (Pausing)", "no transition", "underscore")


def test_an_override_whose_name_is_misspelt() -> None:
    class Misspelt(Walk):
        def set_uot(self) -> Literal["left"]:
            return "left"

    refuse(Misspelt, "'set_uot'", "'walk' (Misspelt)", "Did you mean 'set_out'?")


@pytest.mark.parametrize("name", ["walk", "find", "replace", "put", "state_dict", "transitions"])
def test_a_state_by_a_name_that_loops_have_already(name: str) -> None:
    with pytest.raises(StateMachineError, match=f"state called '{name}'.*something else"):
        type("Taken", (Loop,), {"initial": name})


@pytest.mark.parametrize("name", ["run", "graph", "step", "start", "stop", "path", "name", "end"])
def test_a_state_by_a_name_that_trainers_have_is_right(name: str) -> None:
    named = type("Named", (Loop,), {"initial": name, "outcomes": ("done",), name: Leaf.work})
    assert run(named()) == "done"


@pytest.mark.parametrize("name", ["walk", "find", "replace"])
def test_a_helper_by_the_name_of_a_method_that_the_machine_calls(name: str) -> None:
    helper = type("Helped", (Walk,), {name: lambda self: 1})
    refuse(helper, "'walk' (Helped)", repr(name), "something else")


def test_a_context_of_ones_own() -> None:
    class Method(Walk):
        def context(self) -> int:
            return 1

    class Assigned(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.context = {"rate": 0.1}

    refuse(Method, "'walk' (Method)", "`context`", "something else")
    refuse(Assigned, "'walk' (Assigned)", "`self.context`", "something else")


# -- fields and settings ---------------------------------------------------------------------------


def test_a_mutable_default() -> None:
    with pytest.raises(StateMachineError, match=r"Sharing\.seen .*field\(factory=list\)"):

        class Sharing(Walk):
            seen: list[int] = []


def test_a_mutable_attribute_without_an_annotation() -> None:
    class Sharing(Walk):
        seen = []  # type: ignore[var-annotated]

    refuse(Sharing, "Sharing.seen", "share", "`seen: list = field(factory=list)`")


def test_a_field_without_an_annotation() -> None:
    class Counting(Walk):
        steps = 0

        def arrive(self) -> Literal["arrived"]:
            self.steps += 1
            return "arrived"

    refuse(Counting, "'walk.arrive' (Counting)", "`self.steps`", "`steps: int = 0`")


def test_state_that_is_set_up_in_init_only() -> None:
    class Counting(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.steps = 0

        def arrive(self) -> Literal["arrived"]:
            self.steps = self.steps + 1
            return "arrived"

    refuse(Counting, "'walk.arrive' (Counting)", "`self.steps`", "no field", "underscore")


def test_what_may_be_lost_begins_with_an_underscore() -> None:
    class Caching(Walk):
        def arrive(self) -> Literal["arrived"]:
            self._table = {"a": 1}
            return "arrived"

    assert run(Caching()) == "arrived"


def test_a_setting_that_is_annotated_in_the_class() -> None:
    class Limited(Walk):
        limit: int

        def __init__(self, limit: int) -> None:
            super().__init__()
            self.limit = limit

    refuse(Limited(3), "Limited.limit", "'walk'", "`__init__`", "setting", "annotation out")


def test_a_scope_that_is_misspelt() -> None:
    class Scoped(Walk):
        count: int = field(0, scope="wakl")

    refuse(Scoped, "'count'", "'walk' (Scoped)", "'wakl'", "Did you mean 'walk'?")


# -- loops inside loops ----------------------------------------------------------------------------


class Outer(Loop):
    initial = "inner"
    outcomes: ClassVar[Any] = ("done",)
    inner: Loop = place(Leaf)


def test_super_init_forgotten_does_no_harm() -> None:
    class Forgetful(Outer):
        def __init__(self) -> None:
            self.rate = 0.1

    assert run(Forgetful()) == "done"


def test_a_loop_that_is_assigned_in_init_is_a_loop_of_the_tree() -> None:
    class Assigning(Outer):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Leaf()

    assert run(Assigning()) == "done"


@pytest.mark.parametrize("inner", [Leaf, Leaf()], ids=["class", "instance"])
def test_a_loop_as_a_plain_attribute_of_the_class(inner: Any) -> None:
    with pytest.raises(StateMachineError, match=r"Plain\.inner .*`inner: Loop = place\(Leaf\)`"):
        type("Plain", (Loop,), {"initial": "inner", "inner": inner})


def test_a_place_with_an_instance() -> None:
    class Shared(Outer):
        inner: Loop = place(Leaf())  # type: ignore[arg-type]

    refuse(Shared, "Shared.inner", "'walk'", "`place(Leaf)`")
    with pytest.raises(LoopDefinitionError, match=re.escape("`place(lambda: Leaf(...))`")):
        Shared().loops_inside()  # as a swap asks for them, before a machine is built


def test_a_place_that_no_transition_names() -> None:
    class Left(Walk):
        inner: Loop = place(Leaf)

    class Annotated(Walk):
        inner: Loop

    refuse(Left, "'inner'", "'walk' (Left)", "no transition")
    refuse(Annotated, "'inner'", "'walk' (Annotated)", "no transition")


def test_an_empty_place() -> None:
    class Hollow(Loop):
        initial = "inner"
        inner: Loop

    refuse(Hollow, "'inner'", "'walk' (Hollow)", "`Hollow(inner=...)`")


def test_a_loop_and_a_method_by_one_name() -> None:
    class Both(Outer):
        initial = "inner"
        inner: Loop = place(Leaf)

        def inner(self) -> Literal["done"]:  # type: ignore[no-redef]  # noqa: F811
            return "done"

    refuse(Both, "'inner'", "'walk' (Both)", "a loop and a method")


def test_one_instance_in_two_places() -> None:
    class Twins(Loop):
        initial = "left"
        transitions = [["done", "left", "right"]]
        outcomes = ("done",)
        left: Loop
        right: Loop

    leaf = Leaf()
    refuse(Twins(left=leaf, right=leaf), "Leaf", "'walk.left'", "'walk.right'", "two instances")


def test_a_misspelt_place() -> None:
    with pytest.raises(StateMachineError, match=r"Outer .*'iner'.*Did you mean 'inner'"):
        Outer(iner=Leaf())


# -- use -------------------------------------------------------------------------------------------


def make_trainer() -> Trainer:
    return Trainer(max_epochs=1, progress=False)


class OtherEvent(Loop):
    initial = "work"

    def work(self) -> Literal["stepped"]:
        return "stepped"


@pytest.mark.parametrize(
    "name, said",
    [
        ("epoch_ned", "Did you mean 'epoch_end'"),
        ("on_train_epoch_end", "Did you mean 'epoch_end'"),
        ("epoch_end:exti", "Did you mean 'exit'?"),
        ("fetch:exausted", "Did you mean 'exhausted'"),
    ],
)
def test_a_hook_on_a_name_that_is_misspelt(name: str, said: str) -> None:
    with pytest.raises(StateMachineError, match=said):
        make_trainer().on(name, lambda: None)


@pytest.mark.parametrize("leaf", [Leaf, Leaf()], ids=["class", "instance"])
def test_a_loop_given_by_position(leaf: Any) -> None:
    class Outer(Loop):
        initial = "leaf"
        leaf: Loop = place(Leaf)

    class Strict(Outer):
        def __init__(self, number: int = 1, **loops: Any) -> None:
            super().__init__(**loops)

    wrong: list[tuple[Any, tuple[Any, ...], str]] = [
        (Outer, (leaf,), r"`Outer\(leaf=Leaf\(\)\)`.*Its places: leaf"),
        (Strict, (1, leaf), r"a Leaf by position.*`Strict\(leaf="),
        (FitLoop, (leaf,), r"`FitLoop\(name=.*Its places: .*epoch"),
    ]
    for kind, given, said in wrong:
        with pytest.raises(PlaceNotNamed, match=said):
            kind(*given)
    assert isinstance(Outer(leaf=leaf).leaf, Leaf)


def test_a_loop_that_a_class_takes_by_position_is_right() -> None:
    class Around(Loop):
        initial = "leaf"
        leaf: Loop = place(Leaf)

        def __init__(self, inner: Loop) -> None:
            super().__init__(leaf=inner)

    assert isinstance(Around(Leaf()).leaf, Leaf)


def test_replacing_a_loop_by_a_misspelt_name() -> None:
    with pytest.raises(StateMachineError, match=r"'optimiser'. Did you mean 'epoch.batch.optimize"):
        make_trainer().loop.replace(optimiser=OtherEvent())


def test_a_loop_in_place_of_another_that_ends_with_another_event() -> None:
    trainer = make_trainer()
    before = trainer.loop["optimizer"]
    with pytest.raises(StateMachineError) as caught:
        trainer.loop.replace(optimizer=OtherEvent())
    for said in ("BatchLoop", "'optimized'", "OtherEvent", "'stepped'", "answer 'optimized'"):
        assert said in str(caught.value)
    assert trainer.loop["optimizer"] is before


def test_a_trainer_of_a_class_of_loops() -> None:
    with pytest.raises(StateMachineError, match=r"the class OtherEvent: write `OtherEvent\(\)`"):
        Trainer(OtherEvent)  # type: ignore[arg-type]


def test_a_trainer_of_a_loop_that_does_not_say_how_it_ends() -> None:
    with pytest.raises(StateMachineError, match=r"outcomes = \('stepped',\)` in OtherEvent"):
        Trainer(OtherEvent())


def test_a_setting_that_is_misspelt_or_given_twice() -> None:
    with pytest.raises(StateMachineError, match="Did you mean 'max_epochs'"):
        Trainer(max_epoch=3)
    with pytest.raises(StateMachineError, match=r"'max_epochs'.*Set it on the loop"):
        Trainer(FitLoop(max_epochs=1), max_epochs=3)


def test_an_event_that_nobody_takes_is_not_posted() -> None:
    with pytest.raises(StateMachineError, match=r"'stopp'\. Did you mean 'stop'"):
        make_trainer().post("stopp")


# -- state that no snapshot holds, and methods that nobody calls ----------------------------------


def two_state_loop(**body: Any) -> type[Loop]:
    class Two(Loop):
        initial = "first"
        transitions = [["go", "first", "second"]]
        outcomes = ("done",)

        def first(self) -> Literal["go"]:
            return "go"

        def second(self) -> Literal["done"]:
            return "done"

    return type("Derived", (Two,), body)


class KeepsList(Loop):
    initial = "work"
    outcomes = ("done",)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.names = {"a": 1}
        self.fixed = [1, 2]

    def work(self) -> Literal["done"]:
        self.seen.append(sum(self.fixed) + len(self.names))
        return "done"


class KeepsDict(KeepsList):
    def work(self) -> Literal["done"]:
        self.names["b"] = 2
        return "done"


class KeepsByHelper(KeepsList):
    def work(self) -> Literal["done"]:
        self.note()
        return "done"

    def note(self) -> None:
        self.seen += [1]


class ChangesByHelper(KeepsList):
    def work(self) -> Literal["done"]:
        self.note()
        return "done"

    def note(self) -> None:
        self.seen.extend([1])


@pytest.mark.parametrize(
    "cls, name",
    [(KeepsList, "seen"), (KeepsDict, "names"), (KeepsByHelper, "seen"), (ChangesByHelper, "seen")],
)
def test_a_container_that_a_state_changes_and_no_snapshot_holds(cls: type[Loop], name: str) -> None:
    with pytest.raises(LoopDefinitionError, match=rf"`?self\.{name}`?, which is no field"):
        Driver(cls())


def test_a_container_that_is_a_field_or_only_read_is_as_it_should_be() -> None:
    class Keeps(Loop):
        initial = "work"
        outcomes = ("done",)
        seen: list[int] = field(factory=list)

        def __init__(self) -> None:
            super().__init__()
            self.fixed = [1, 2]
            self._cache: dict[int, int] = {}

        def work(self) -> Literal["done"]:
            self.seen.append(self.fixed[0])
            self._cache[1] = 2
            return "done"

    Driver(Keeps())


@pytest.mark.parametrize(
    "method, way",
    [
        ("on_enter_second", "trainer.on('second', "),
        ("on_exit_first", "trainer.on('first:exit', "),
        ("on_second", "trainer.on('second', "),
        ("on_enter_secnd", "trainer.on('secnd', "),
        ("before_go", "trainer.on('STATE:go', "),
        ("after_go", "trainer.on('STATE:go', "),
    ],
)
def test_a_method_of_a_loop_that_looks_like_a_receiver(method: str, way: str) -> None:
    def hook(self: Loop) -> None: ...

    with pytest.raises(LoopDefinitionError, match=re.escape(way)):
        Driver(two_state_loop(**{method: hook})())


def test_other_methods_of_such_names_are_left_alone() -> None:
    def hook(self: Loop) -> None: ...

    for method in ("on_time", "before_long", "_on_enter_second", "once"):
        Driver(two_state_loop(**{method: hook})())


def test_a_class_as_the_value_of_a_field() -> None:
    with pytest.raises(LoopDefinitionError, match=re.escape("Write field(factory=dict).")):
        field(dict)


def test_a_function_that_makes_a_loop_in_the_place_of_one() -> None:
    trainer = Trainer(max_epochs=1, progress=False)
    with pytest.raises(
        LoopDefinitionError, match=re.escape("call a function or a `functools.partial`")
    ):
        trainer.loop["epoch"] = partial(EpochLoop, limit_batches=1)


def test_another_loop_for_a_trainer() -> None:
    trainer = Trainer(max_epochs=1, progress=False)
    with pytest.raises(
        StateMachineError, match=re.escape("`Trainer(loop)`, or replace what is inside")
    ):
        trainer.loop = FitLoop(max_epochs=2)  # type: ignore[misc]
