from hypothesis import given
from hypothesis import strategies as st
from layerlift.runtime.stops import StopStrings


def run(stops, pieces):
    matcher, out = StopStrings(tuple(stops)), []
    for piece in pieces:
        text, stop = matcher.feed(piece)
        out.append(text)
        if stop is not None:
            return "".join(out), stop
    return "".join([*out, matcher.flush()]), None


def test_text_after_a_stop_string_is_never_shown():
    assert run(["END"], ["one E", "N", "D two"]) == ("one ", "END")


def test_text_that_only_begins_like_a_stop_string_is_shown_late_but_whole():
    assert run(["END"], ["one EN", "ough"]) == ("one ENough", None)
    assert run(["END"], ["one EN"]) == ("one EN", None)


def test_the_earliest_of_several_stop_strings_wins():
    assert run(["\n", "User:"], ["hi User: x\n"]) == ("hi ", "User:")


def test_without_stop_strings_text_passes_at_once():
    assert StopStrings(()).feed("abc") == ("abc", None)


def test_text_is_passed_on_as_soon_as_it_cannot_be_a_stop_string():
    matcher = StopStrings(("<end>",))
    assert matcher.feed("a<e") == ("a", None)
    assert matcher.feed("x") == ("<ex", None)


@given(st.lists(st.text("ab", max_size=4), max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
def test_pieces_make_no_difference(pieces, stops):
    whole = "".join(pieces)
    places = [whole.find(s) for s in stops if s in whole]
    text, stop = run(stops, pieces)
    if stop is None:
        assert not places
        assert text == whole
    else:
        assert whole.startswith(text + stop)
        assert not any(s in text for s in stops)


def test_an_empty_stop_string_stops_nothing():
    assert run([""], ["abc"]) == ("abc", None)
