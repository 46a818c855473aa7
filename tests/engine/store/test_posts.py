"""
The election: one holder at a time, for as long as it renews; a term is a change of hands.
"""

import threading

from fix_store import World

from milkrun_engine.store.posts import Post

SECONDS = 8.0


def take(world: World, me: str, **facts: str) -> Post:
    return world.store.posts.take("dispatcher", me, SECONDS, facts)


def test_the_first_has_it_and_the_others_hear_of_it(world: World) -> None:
    assert ("one", 1) == ((post := take(world, "one", pool="loading")).holder, post.term)
    assert Post(holder="one", term=1, facts={"pool": "loading"}) == take(world, "two", pool="never said")


def test_a_holder_that_renews_keeps_post_and_term(world: World) -> None:
    for number in range(5):
        assert Post(holder="one", term=1, facts={"n": number}) == take(world, "one", n=number)
        assert "one" == take(world, "two").holder
        world.advance(SECONDS - 1)


def test_who_does_not_renew_loses_it(world: World) -> None:
    take(world, "one")
    world.advance(SECONDS + 1)
    assert ("two", 2) == ((post := take(world, "two")).holder, post.term)
    assert "two" == take(world, "one").holder, "the former holder hears of it"


def test_who_leaves_makes_room_at_once(world: World) -> None:
    take(world, "one")
    world.store.posts.leave("dispatcher", "two")
    assert "one" == take(world, "two").holder, "nobody leaves for another"
    world.store.posts.leave("dispatcher", "one")
    assert ("two", 2) == ((post := take(world, "two")).holder, post.term)


def test_many_candidates_at_once_are_one_holder(world: World) -> None:
    seen: list[Post] = []

    def stand(name: str) -> None:
        seen.append(take(world, name))

    threads = [threading.Thread(target=stand, args=(f"candidate {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 8 == len(seen)
    assert 1 == len({post.holder for post in seen})
    assert {1} == {post.term for post in seen}
