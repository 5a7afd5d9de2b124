"""Files of interactions: fields, names, ratings, times, what is left out, and mistakes."""

import logging
import lzma

import numpy as np
import pytest

from jaxkd.data.readers.interactions import read_interactions

LINES = ["userId,movieId,rating,timestamp", "7,100,4.0,30", "7,20,1.0,10", "12,100,5.0,20", '12,"20",3.5,5']


@pytest.fixture
def write(tmp_path):
    def make(lines, name="ratings.csv"):
        path = tmp_path / name
        text = ("\n".join(lines) + "\n").encode()
        path.write_bytes(lzma.compress(text) if name.endswith(".xz") else text)
        return f"{'tsv' if '.tsv' in name else 'csv'}:{path}"

    return make


def test_users_and_items_are_numbered_by_their_names_and_compressed_files_are_read(write):
    found = read_interactions(write(LINES, "ratings.csv.xz"))
    assert found.users == ("7", "12")
    assert found.items == ("20", "100")
    assert found.user.tolist() == [0, 0, 1, 1]
    assert found.item.tolist() == [1, 0, 1, 0]
    assert found.time.tolist() == [30, 10, 20, 5]
    assert found.user.dtype == found.item.dtype == np.int32


def test_names_are_words_too_fields_are_named_and_dates_are_times(write):
    lines = ["listener\tsong\twhen", "ada\tblue\t2024-05-31", "bob\tred\t2024-05-31T00:00:01", "ada\tred\t5"]
    place = write(lines, "plays.tsv")
    found = read_interactions(place, user="listener", item="song", time="when")
    assert found.users == ("ada", "bob")
    assert found.items == ("red", "blue")
    assert np.diff(found.time)[0] == 1
    assert found.time[2] == 5


def test_low_ratings_and_repetitions_are_left_out_and_said_and_without_times_the_lines_order_counts(write, caplog):
    with caplog.at_level(logging.WARNING):
        found = read_interactions(write(LINES), least_rating=3.5)
        assert found.users == ("7", "12")
        assert len(found.user) == 3
        again = read_interactions(write([*LINES, "7,20,2.0,9"]))
        untimed = read_interactions(write(LINES), time="none")
    assert len(again.user) == 4
    assert 9 in again.time
    assert 10 not in again.time
    assert untimed.time.tolist() == [0, 1, 2, 3]
    said = caplog.text
    assert "1 of 4 interactions have a rating below 3.5, left out" in said
    assert "1 of 5 interactions repeat one of the same user and item" in said
    assert "no field of times" in said


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (
            LINES,
            {"user": "person"},
            r"no field 'person' \(--user-field\): it has userId, movieId, rating and timestamp",
        ),
        (LINES, {"item": "userId"}, "'userId' of .* is named twice"),
        (["a,b", "1,2"], {}, "no field with a usual name of users, such as userId"),
        (["user,b", "1,2"], {}, "no field with a usual name of items"),
        (["user,item", "1,2"], {"least_rating": 3.0}, "--least-rating is 3, but .* has no field of ratings"),
        (LINES, {"least_rating": 9.0}, "no rating of .* is at least 9"),
        ([*LINES, "7,,1.0,5"], {}, "`movieId` is empty in line 6 of"),
        (
            [*LINES, "7,8,1.0,noon"],
            {},
            "`timestamp` is 'noon' in line 6 of .*, which is no time: give a number, or a date",
        ),
        ([*LINES, "7,8,good,5"], {"least_rating": 1.0}, "`rating` is 'good' in line 6 of .*, which is no rating"),
        ([*LINES, "7,8,nan,5"], {"least_rating": 1.0}, "`rating` is 'nan' in line 6"),
        ([*LINES, "7,8"], {}, r"line 6 of .* has 2 field\(s\)"),
    ],
)
def test_mistakes_get_a_sentence(write, lines, options, message):
    with pytest.raises(ValueError, match=message):
        read_interactions(write(lines), **options)


def test_places_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'ratings\.csv' is no place of interactions: write csv:PATH or tsv:PATH"):
        read_interactions("ratings.csv")
    with pytest.raises(ValueError, match=r"nothing\.csv does not exist"):
        read_interactions(f"csv:{tmp_path / 'nothing.csv'}")
