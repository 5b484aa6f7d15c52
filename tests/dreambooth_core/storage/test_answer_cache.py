"""The cache of answers in a store."""

from dreambooth_core.storage.answer_cache import StoredAnswers

KEY = "ab" * 32


def test_the_last_answer_of_a_key_is_returned(file_store):
    cache = StoredAnswers(file_store)
    assert cache.get(KEY) is None
    cache.put(KEY, b"first")
    cache.put(KEY, b"second")
    assert StoredAnswers(file_store).get(KEY) == b"second"
    assert [one.key for one in file_store.listed("answers/")] == [f"answers/{KEY}/result.json"]
