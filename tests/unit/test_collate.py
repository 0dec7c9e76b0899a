"""Prompts to the left, answers to the right, all answers from one column."""

from crosskd.data.collate import collate_answers, collate_encoder_decoder


def test_answers_start_in_one_column_and_labels_come_from_lengths() -> None:
    batch = collate_answers([[5, 6, 7], [8]], [[1, 2], [3, 4, 2]])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 1, 2], [8, 8, 8, 3, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]]
    assert batch["labels"].tolist() == [[1, 2, -100], [3, 4, 2]]


def test_the_last_columns_predict_the_answer() -> None:
    batch = collate_answers([[5, 6], [7, 8]], [[1], [3]])
    assert batch["input_ids"].tolist() == [[5, 6], [7, 8]]
    assert batch["labels"].shape[1] == 1


def test_padding_of_an_encoder_decoder_repeats_tokens_of_its_row() -> None:
    batch = collate_encoder_decoder([[5, 6, 7], [8]], [[1, 2], [3, 4, 9]], decoder_start_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 8, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["decoder_input_ids"].tolist() == [[0, 1, 0], [0, 3, 4]]
    assert batch["labels"].tolist() == [[1, 2, -100], [3, 4, 9]]
