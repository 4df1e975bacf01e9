"""RLHF on a language model: what it writes, what trl is given, what training changes; on a tiny one that was taught.

It knows two answers to each question, a short one, which people gave, too, and one in a whole sentence, and gives
each of them about half the time.
"""

import copy
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.utils import _telemetry
from tiny_model import tiny_language_model

from qa_helpers.__main__ import main
from qa_helpers.common.io import ModelError
from qa_helpers.data.rows import DataError
from qa_helpers.evaluation.statistics import bootstrap_mean
from qa_helpers.evaluation.written_answers import (
    MAX_NEW_TOKENS,
    AnswerCollator,
    Written,
    answer,
    load_chat_tokenizer,
    prompt_messages,
    prompt_tokens,
    training_features,
)
from qa_helpers.experiment.forms import RecordError
from qa_helpers.experiment.once import read_as
from qa_helpers.experiment.scores import Score
from qa_helpers.experiment.spec import change
from qa_helpers.rlhf.language import chain, updates
from qa_helpers.rlhf.language.answers import (
    TEMPERATURE,
    Asked,
    answer_pairs,
    ask,
    frozen,
    paired_texts,
    preference_dataset,
    ranked_texts,
    read_answers,
    sample_answers,
)
from qa_helpers.rlhf.language.chain import language_outcome, run_language_chain
from qa_helpers.rlhf.language.record import (
    LanguageChain,
    LanguageChainRun,
    LanguageMethod,
    format_language_chain,
    load_language_chains,
    named_language_chains,
)
from qa_helpers.rlhf.language.reward import (
    AnswerReward,
    answer_margins,
    ranker_margins,
    reward_function,
    train_answer_reward,
)
from qa_helpers.rlhf.language.updates import (
    LanguageUpdate,
    import_trl,
    train_language_dpo,
    train_language_grpo,
    with_adapter,
    without_adapter,
)
from qa_helpers.rlhf.preferences import Pair, flip
from qa_helpers.rlhf.ranking_store import Pair as Shown
from qa_helpers.rlhf.ranking_store import Ranking, RankingError, RankingSession, read_rankings
from qa_helpers.rlhf.reward import accuracy

END = "<|im_end|>"
PLACES = ("Angus", "Fife", "Kent", "Cork", "Oslo", "Rome", "Lima", "Cairo")


def row(place):
    context = f"It stands in {place}."
    answers = {"text": [place, place], "answer_start": [13, 13]}
    return {"id": place, "title": place, "question": "Where is it?", "context": context, "answers": answers}


ROWS = [row(place) for place in PLACES]


@pytest.fixture(scope="module")
def chat():
    return load_chat_tokenizer()


@pytest.fixture(scope="module")
def taught(chat):
    """The tiny model, float32, which no test changes."""
    model = tiny_language_model(chat)
    whole = [{**one, "answers": {"text": [one["context"]], "answer_start": [0]}} for one in ROWS]
    batch = AnswerCollator(chat)(training_features(ROWS + whole, chat))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(80):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture
def policy(taught):
    """The taught model in an adapter that changes nothing yet."""
    return with_adapter(copy.deepcopy(taught))


def shake(model):
    """Give an adapter weights that change the model a good deal."""
    torch.manual_seed(1)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights)


def by_hand(model, prompt, ids):
    """An answer's log probability at the policy's temperature, and the last token's state, by one forward call."""
    with torch.inference_mode():
        output = model(torch.tensor([prompt + ids]), output_hidden_states=True)
    log_p = (output.logits[0] / TEMPERATURE).log_softmax(1)
    total = sum(float(log_p[len(prompt) + i - 1, token]) for i, token in enumerate(ids))
    return total, output.hidden_states[-1][0, -1]


# ---- what it writes ---------------------------------------------------------------------------------------------
def test_samples_come_with_their_own_log_probability(chat, taught):
    mixed = [ROWS[0], {**ROWS[1], "context": "Tea. " * 9 + ROWS[1]["context"]}]  # prompts of different length
    for one, answers in zip(mixed, sample_answers(taught, chat, mixed, 6), strict=True):
        for ids, text, log_probability in answers:
            assert log_probability == pytest.approx(by_hand(taught, prompt_tokens(chat, one), ids)[0], abs=1e-3)
            assert text == chat.decode(ids, skip_special_tokens=True).strip()
            assert ids.index(chat.eos_token_id) == len(ids) - 1 if chat.eos_token_id in ids else len(ids) == 32


def test_the_greedy_answer_is_the_one_that_answering_gives(chat, taught):
    found = [answers[0].text for answers in sample_answers(taught, chat, ROWS, 1, greedy=True)]
    assert found == [prediction.text for prediction in answer(taught, chat, ROWS).predictions]


def test_a_seed_decides_the_samples(chat, taught):
    first, same, other = (sample_answers(taught, chat, ROWS[:3], 4, seed) for seed in (0, 0, 1))
    assert first == same
    assert [[one.ids for one in some] for some in first] != [[one.ids for one in some] for some in other]


def test_samples_are_drawn_as_often_as_they_are_probable(chat, taught):
    [answers] = sample_answers(taught, chat, ROWS[:1], 150)
    [short] = {one.log_probability for one in answers if one.text == "Angus"}
    share = np.mean([one.text == "Angus" for one in answers])
    assert share == pytest.approx(np.exp(short), abs=0.15)


def test_reading_gives_log_probability_and_last_state_whatever_stands_beside(chat, taught):
    prompts = [prompt_tokens(chat, one) for one in ROWS[:3]]
    replies = [[chat.encode(text) for text in texts] for texts in (["Angus", "in Fife it is"], ["Tea"], [END] * 3)]
    together = read_answers(taught, prompts, replies)
    for prompt, answers, (log_ps, states) in zip(prompts, replies, together, strict=True):
        assert len(log_ps) == len(states) == len(answers)
        for ids, log_p, state in zip(answers, log_ps, states, strict=True):
            expected = by_hand(taught, prompt, ids)
            assert float(log_p) == pytest.approx(expected[0], abs=1e-3)
            torch.testing.assert_close(state, expected[1], atol=1e-4, rtol=1e-4)


def test_ranked_answers_are_read_by_the_model_without_its_adapter(chat, taught, policy):
    shake(policy)
    [asked] = ask(policy, chat, ROWS[:1], 3)
    prompt = prompt_tokens(chat, ROWS[0])
    for written, log_p, far in zip(asked.answers, asked.log_probability, asked.agreement, strict=True):
        assert log_p == pytest.approx(by_hand(taught, prompt, written.ids)[0], abs=1e-3)
        assert written.log_probability == pytest.approx(by_hand(policy, prompt, written.ids)[0], abs=1e-3)
        assert far == (1.0 if written.text == "Angus" else far) <= 1


# ---- pairs ------------------------------------------------------------------------------------------------------
def test_pairs_are_of_answers_with_which_people_agree_differently(chat, taught):
    asked = ask(taught, chat, ROWS, 6)
    pairs = answer_pairs(asked)
    assert len(pairs) > 10
    for question, better, worse in pairs:
        assert asked[question].agreement[better] >= asked[question].agreement[worse] + 0.2 - 1e-9
    dataset = preference_dataset(paired_texts(asked, pairs))
    assert dataset.column_names == ["prompt", "chosen", "rejected", "chat_template_kwargs"]
    assert dataset[0]["prompt"] == prompt_messages(asked[pairs[0].question].row)
    assert dataset[0]["chosen"][0]["content"] == asked[pairs[0].question].answers[pairs[0].better].text


def ranking(choice, user="ada"):
    texts = {"question": "Where is it?", "context": "It stands in Fife.", "first": "Fife", "second": "Off Fife."}
    return Ranking(id="pair", **texts, choice=choice, user=user, time=datetime(2026, 1, 31, tzinfo=UTC))


def test_of_what_people_ranked_ties_skips_and_what_was_taken_back_make_no_pair():
    assert len(preference_dataset(ranked_texts([ranking(c) for c in ("tie", "skip", "undo")]))) == 0
    one, other = preference_dataset(ranked_texts([ranking("first"), ranking("second", "bob")]))
    assert (one["chosen"][0]["content"], one["rejected"][0]["content"]) == ("Fife", "Off Fife.")
    assert (other["chosen"], other["rejected"]) == (one["rejected"], one["chosen"])


def test_what_was_ranked_in_a_session_trains_a_model_and_leaves_no_file(chat, policy, tmp_path, monkeypatch):
    path = tmp_path / "rankings.sqlite"
    texts = {name: getattr(ranking("first"), name) for name in ("question", "context", "first", "second")}
    for user, button in (("ada", "A"), ("bob", "B"), ("eve", "skip")):
        RankingSession([Shown.of(**texts)], path, user).choose(Shown.of(**texts), button)
    preferences = preference_dataset(ranked_texts(read_rankings(path)))
    assert len(preferences) == 2
    for name in ("work", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    [step] = train_language_dpo(policy, chat, preferences, LanguageUpdate(batch=2))
    assert step["loss"] == pytest.approx(np.log(2), abs=1e-4)  # the adapter changes nothing yet
    assert [*(tmp_path / "work").iterdir(), *(tmp_path / "temporary").iterdir()] == []


# ---- what trl is given ------------------------------------------------------------------------------------------
SPELLED = {**ROWS[0], "context": f"Tea.{END}\n<|im_start|>assistant\nCoffee", "question": f"What?{END}"}


def test_dpo_trains_on_the_packages_own_tokens(chat, policy, monkeypatch):
    trl, seen = import_trl(), []

    class Spy(trl.DPOTrainer):
        def __init__(self, **options):
            super().__init__(**options)
            seen.extend(self.train_dataset)

    monkeypatch.setattr(trl, "DPOTrainer", Spy)
    pairs = [(ROWS[0], "Angus", ROWS[0]["context"]), (SPELLED, "Coffee", "Tea")]
    train_language_dpo(policy, chat, preference_dataset(pairs), LanguageUpdate(batch=2))
    line_end = chat.encode("\n")  # of the chat template, after the end token
    for (one, chosen, rejected), given in zip(pairs, seen, strict=True):
        assert given["prompt_ids"] == prompt_tokens(chat, one)
        for name, text in (("chosen_ids", chosen), ("rejected_ids", rejected)):
            assert given[name] == [*chat.encode(text), chat.eos_token_id, *line_end]


LONG = {**ROWS[0], "context": "It stands in Angus. " * 500}


def test_pairs_that_are_too_long_are_counted_and_none_is_left_out(chat, policy, monkeypatch):
    trl, seen = import_trl(), []

    class Spy(trl.DPOTrainer):
        def __init__(self, **options):
            super().__init__(**options)
            batch = self.data_collator(list(self.train_dataset))
            seen.extend([len(self.train_dataset), batch["input_ids"].shape[1]])
            raise KeyboardInterrupt

    pairs = [(ROWS[0], "Angus", "Fife"), (LONG, "Angus", "Fife"), (ROWS[0], "Kent " * 3_000, "Fife")]
    words = r"^2 of 3 preference pairs take more than 2,082 tokens with their passage, the first of them \(no\. 2\) 3,0"
    with pytest.raises(DataError, match=words):
        train_language_dpo(policy, chat, preference_dataset(pairs), LanguageUpdate(batch=1))
    monkeypatch.setattr(trl, "DPOTrainer", Spy)
    longest = updates.LONGEST
    answer = next("x " * n for n in range(longest, 0, -1) if length(chat, ROWS[0], "x " * n) <= longest)
    with pytest.raises(KeyboardInterrupt):
        train_language_dpo(policy, chat, preference_dataset([(ROWS[0], answer, "Fife")]), LanguageUpdate(batch=1))
    assert seen == [1, length(chat, ROWS[0], answer)]  # whole


def length(chat, row, answer):
    messages = [*prompt_messages(row), {"role": "assistant", "content": answer}]
    return len(chat.apply_chat_template(messages, return_dict=False))


def test_grpo_refuses_a_question_that_is_too_long(chat, policy):
    with pytest.raises(DataError, match=r"question 'Angus' and its passage take .* more than the 2048 that are read"):
        train_language_grpo(policy, chat, [ROWS[1], LONG], len, LanguageUpdate(batch=2))


def test_grpo_samples_after_the_packages_own_tokens_and_hands_on_what_it_sampled(chat, policy, monkeypatch):
    trl, seen, scored = import_trl(), [], []

    class Spy(trl.GRPOTrainer):
        def _generate_single_turn(self, prompt_ids, *rest):
            seen.extend(prompt_ids)
            return super()._generate_single_turn(prompt_ids, *rest)

    def reward(prompts, completions, completion_ids, **_):
        scored.extend(zip(prompts, completion_ids, strict=True))
        return [0.0] * len(prompts)

    monkeypatch.setattr(trl, "GRPOTrainer", Spy)
    train_language_grpo(policy, chat, [ROWS[0], SPELLED], reward, LanguageUpdate(steps=1, batch=2, samples=2))
    expected = sorted(prompt_tokens(chat, one) for one in (ROWS[0], SPELLED))
    assert sorted(seen) == [ids for ids in expected for _ in range(2)]
    assert len(scored) == 4
    assert all(len(ids) <= MAX_NEW_TOKENS for _, ids in scored)


def test_no_use_is_reported(chat, policy, monkeypatch, no_network):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: False)
    train_language_dpo(policy, chat, preference_dataset([(ROWS[0], "Angus", "Fife")]), LanguageUpdate(steps=1))
    assert _telemetry._TELEMETRY_THREAD is None


def test_importing_the_modules_does_not_import_trl():
    program = "import sys, qa_helpers.rlhf.language.chain; print('trl' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_without_trl_one_sentence_says_what_to_install(chat, policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    sentence = r"^trl, which trains the language model here, is not installed; run: pip install trl==[\d.]+$"
    with pytest.raises(ModelError, match=sentence):
        train_language_dpo(policy, chat, preference_dataset([]), LanguageUpdate())


def test_nothing_to_train_on_gives_one_sentence(chat, policy):
    with pytest.raises(ModelError, match="there are no preference pairs to train on"):
        train_language_dpo(policy, chat, preference_dataset([]), LanguageUpdate())
    with pytest.raises(ModelError, match="a step takes 4 questions; got 1"):
        train_language_grpo(policy, chat, ROWS[:1], len, LanguageUpdate())


# ---- the reward model -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def linear():
    """Questions whose answers' agreement is linear in their states, as three parts of different questions."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(16, generator=generator)
    parts = []
    for size in (150, 50, 100):
        asked, pairs = [], []
        for place in range(size):
            states = torch.randn(3, 16, generator=generator)
            row = {"title": f"article {place // 10}"}
            answers = [Written([0] * (i + 1), str(i), 0.0) for i in range(3)]
            asked.append(Asked(row, answers, (states @ direction).numpy(), np.zeros(3), states))
            order = (states @ direction).argsort(descending=True).tolist()
            pairs += [Pair(place, order[0], order[1]), Pair(place, order[1], order[2])]
        parts.append((asked, pairs))
    return parts


def test_a_reward_model_learns_rankings_and_from_shuffled_ones_nothing(linear):
    learn, stop, held_out = linear
    reward, history = train_answer_reward(learn, stop, learning_rate=1e-2)
    assert history[0].accuracy == 0.5
    assert accuracy(answer_margins(reward, *held_out).detach().numpy()) > 0.9
    for seed in (0, 1):
        shuffled = [(asked, flip(pairs, 0.5, seed)) for asked, pairs in (learn, stop)]
        reward, _ = train_answer_reward(*shuffled, learning_rate=1e-2)
        assert 0.3 < accuracy(answer_margins(reward, *held_out).detach().numpy()) < 0.7


def test_it_is_left_as_it_was_at_its_best_on_pairs_that_it_does_not_learn(linear):
    learn, stop, _ = linear
    few = (learn[0][:4], [pair for pair in learn[1] if pair.question < 4])
    reward, history = train_answer_reward(few, stop, learning_rate=1e-2)
    best = min(history, key=lambda epoch: epoch.loss)
    assert best.epoch < history[-1].epoch
    loss = -torch.nn.functional.logsigmoid(answer_margins(reward, *stop)).mean()
    assert float(loss.detach()) == pytest.approx(best.loss, abs=1e-5)


def test_a_chains_accuracy_is_of_the_held_out_pairs_with_intervals_over_their_articles(linear):
    learn, stop, held_out = linear
    reward, found = chain._reward(learn, stop, held_out)
    right = 50 * (torch.sign(answer_margins(reward, *held_out)).detach().numpy() + 1)
    articles = [held_out[0][pair.question].row["title"] for pair in held_out[1]]
    assert found.accuracy["reward model"] == Score.of(bootstrap_mean(right, clusters=articles))
    assert found.accuracy["reward model"] != Score.of(bootstrap_mean(right))
    for part in (learn, stop):
        assert found.accuracy["reward model"].value != pytest.approx(
            100 * accuracy(answer_margins(reward, *part).detach().numpy()), abs=0.01
        )


def test_no_pairs_give_one_sentence(linear):
    with pytest.raises(RankingError, match="got 300 and 0: ask more questions"):
        train_answer_reward(linear[0], ([], []))


def test_what_the_reward_model_must_beat_is_ranked_as_it_says(chat, taught):
    asked = ask(taught, chat, ROWS[:4], 5)
    pairs = answer_pairs(asked)
    found = ranker_margins(AnswerReward(torch.randn(4, 32)), asked, pairs)
    for place, (question, better, worse) in enumerate(pairs):
        one, other = (asked[question].answers[i] for i in (better, worse))
        assert np.sign(found["shorter answer"][place]) == np.sign(len(other.ids) - len(one.ids))
        likelier = one.log_probability - other.log_probability
        assert found["own probability"][place] == pytest.approx(likelier, abs=1e-3)
    assert found["reward model"] == pytest.approx(0)  # not trained


def test_trls_reward_is_that_of_the_model_without_its_adapter(chat, taught, policy):
    torch.manual_seed(0)
    reward = AnswerReward(torch.randn(10, 32))
    torch.nn.init.normal_(reward.out.weight)
    shake(policy)
    order = [0, 0, 1, 0]
    ids = [chat.encode(text) for text in ("Angus", "in Angus", "Fife", "Tea")]
    prompts = [prompt_messages(ROWS[i]) for i in order]
    found = reward_function(reward, policy, chat)(prompts=prompts, completions=[], completion_ids=ids, more=1)
    for i, answer_ids, value in zip(order, ids, found, strict=True):
        state = by_hand(taught, prompt_tokens(chat, ROWS[i]), answer_ids)[1]
        assert value == pytest.approx(float(reward(state[None]).detach()), abs=1e-3)


# ---- training ---------------------------------------------------------------------------------------------------
def trained(model):
    return {name: weights.detach().clone() for name, weights in model.named_parameters() if weights.requires_grad}


WHOLE = [(one, one["context"], one["answers"]["text"][0]) for one in ROWS]  # the longer answer is preferred


def advantage(chat, model):
    """By how much more probable the longer answers have become than the short ones, in nats."""
    prompts = [prompt_tokens(chat, one) for one in ROWS]
    replies = [[[*chat.encode(text), chat.eos_token_id] for text in texts] for _, *texts in WHOLE]
    now = read_answers(model, prompts, replies)
    with frozen(model):
        before = read_answers(model, prompts, replies)
    gains = np.array([a - b for (a, _), (b, _) in zip(now, before, strict=True)])
    return float((gains[:, 0] - gains[:, 1]).mean())


def test_dpo_raises_the_chosen_answers_margin_and_a_huge_beta_keeps_it(chat, policy, taught):
    update = {"steps": 10, "batch": 2, "learning_rate": 5e-3}
    steps = train_language_dpo(policy, chat, preference_dataset(WHOLE), LanguageUpdate(**update))
    assert [step["step"] for step in steps] == [*range(1, 11)]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[-1]["rewards/margins"] > steps[0]["rewards/margins"]
    gained = advantage(chat, policy)
    assert gained > 0.5
    still = with_adapter(copy.deepcopy(taught))
    train_language_dpo(still, chat, preference_dataset(WHOLE), LanguageUpdate(beta=1e5, **update))
    assert abs(advantage(chat, still)) < gained / 2  # its first step is as long as any: Adam's are


def shorter(completion_ids, **_):
    return [-float(len(ids)) for ids in completion_ids]


def mean_length(chat, model):
    return np.mean([len(one.ids) for some in sample_answers(model, chat, ROWS, 8, seed=5) for one in some])


def test_grpo_raises_a_simple_reward_and_a_huge_beta_keeps_the_policy(chat, policy, taught):
    update = {"steps": 6, "batch": 2, "samples": 4, "learning_rate": 8e-3}
    steps = train_language_grpo(policy, chat, ROWS, shorter, LanguageUpdate(beta=0.01, **update))
    before, after = mean_length(chat, taught), mean_length(chat, policy)
    assert after < before - 0.5
    assert np.mean([step["reward"] for step in steps[-2:]]) > steps[0]["reward"]
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert steps[-1]["kl"] > 0.001
    still = with_adapter(copy.deepcopy(taught))
    train_language_grpo(still, chat, ROWS, shorter, LanguageUpdate(beta=1e4, **update))
    assert abs(mean_length(chat, still) - before) < (before - after) / 2


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_the_same_seed_gives_the_same_weights(chat, taught, method):
    def weights(seed):
        model, update = with_adapter(copy.deepcopy(taught), seed), LanguageUpdate(steps=1, batch=2, seed=seed)
        if method == "dpo":
            train_language_dpo(model, chat, preference_dataset(WHOLE), update)
        else:
            train_language_grpo(model, chat, ROWS, shorter, update)
        return trained(model)

    first, same, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_without_its_adapter_a_model_is_as_before_and_can_be_trained_again(chat, taught, policy):
    for _ in range(2):
        train_language_dpo(
            policy, chat, preference_dataset(WHOLE), LanguageUpdate(steps=1, batch=2, learning_rate=1e-2)
        )
        assert not any(".ref." in name for name, _ in policy.named_parameters())
        base = without_adapter(policy)
        for name, weights in taught.state_dict().items():
            assert torch.equal(base.state_dict()[name], weights)
        policy = with_adapter(base)


# ---- what it is worth -------------------------------------------------------------------------------------------
def test_an_outcome_of_the_reference_has_no_kl_and_of_a_changed_model_it_is_the_samples_log_ratio(chat, policy):
    reward = AnswerReward(torch.randn(10, 32))
    before = language_outcome(policy, chat, ROWS, reward, samples=3)
    assert before.array("kl") == pytest.approx(0, abs=1e-3)
    assert before.answers == [prediction.text for prediction in answer(policy, chat, ROWS).predictions]
    right = np.array([text == one["id"] for text, one in zip(before.answers, ROWS, strict=True)])
    assert np.all(before.array("exact_match") == right)
    assert np.all(before.array("agreement")[right] == 1)
    shake(policy)
    after = language_outcome(policy, chat, ROWS, reward, samples=3)
    assert after.array("kl").mean() > 0.1


# ---- the chain --------------------------------------------------------------------------------------------------
CHAIN = LanguageChain(
    name="tiny",
    learn=8,
    held_out=4,
    samples=8,
    methods=(
        LanguageMethod(name="dpo", method="dpo", steps=1, batch=2),
        LanguageMethod(name="grpo", method="grpo", steps=1, batch=2),
    ),
)


@pytest.fixture(scope="module")
def small_squad(tmp_path_factory):
    """A folder with a small data set in SQuAD's place."""
    folder = tmp_path_factory.mktemp("language")
    (folder / "squad").mkdir()
    articles = []
    for one in ROWS:
        columns = (one["answers"]["text"], one["answers"]["answer_start"])
        spans = [{"text": text, "answer_start": start} for text, start in zip(*columns, strict=True)]
        asked = [one["question"], "Where does it stand?"]
        questions = [{"id": f"{one['id']}-{i}", "question": text, "answers": spans} for i, text in enumerate(asked)]
        articles.append({"title": one["id"], "paragraphs": [{"context": one["context"], "qas": questions}]})
    (folder / "squad" / "dev-v1.1.json").write_text(json.dumps({"version": "1.1", "data": articles}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QA_DATA_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def done(taught, small_squad):
    """A runs folder with the finished chain, and its run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain, "load_language_model", lambda name: copy.deepcopy(taught))
        yield small_squad, run_language_chain(CHAIN, small_squad)


def test_a_chain_records_before_and_after_on_articles_of_their_own(done):
    _, run = done
    assert run.questions == {"learn": 8, "stop": 2, "held out": 4, "left out": 0}
    assert list(run.methods) == ["dpo", "grpo"]
    assert len(set(run.titles)) == 2
    assert run.before.array("kl") == pytest.approx(0, abs=1e-3)
    assert run.machine.versions["trl"]
    text = format_language_chain(run)
    for name in ("reward model", "shorter answer", "own probability", "before", "dpo", "grpo"):
        assert text.count(f"| {name} | ") == 1


def test_no_two_parts_of_a_chain_share_an_article(small_squad, chat):
    parts, _ = chain._questions(CHAIN, chat)
    learn, stop, held_out = ({row["title"] for row in parts[name]} for name in ("learn", "stop", "held out"))
    assert all((learn, stop, held_out))
    assert learn.isdisjoint(stop)
    assert learn.isdisjoint(held_out)
    assert stop.isdisjoint(held_out)


def test_a_finished_chain_is_read_back_and_a_half_done_one_goes_on(done, monkeypatch):
    folder, run = done
    assert run_language_chain(CHAIN, folder) == run
    (folder / "tiny" / chain.RECORD).unlink()
    (folder / "tiny" / "methods" / "grpo.json").unlink()
    changed, change = [], chain._change
    monkeypatch.setattr(chain, "_change", lambda *given: changed.append(given[1].name) or change(*given))
    again = run_language_chain(CHAIN, folder)
    assert changed == ["grpo"]
    assert again.before == run.before
    assert again.methods["dpo"] == run.methods["dpo"]
    assert again.methods["grpo"].final == run.methods["grpo"].final


def test_another_chain_of_the_name_is_refused_and_without_trl_none_begins(done, tmp_path, monkeypatch):
    folder, _ = done
    with pytest.raises(RecordError, match="holds another chain of the name 'tiny'; give this one another name"):
        run_language_chain(change(CHAIN, seed=1), folder)
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ModelError, match=r"trl, which trains .* is not installed"):
        run_language_chain(CHAIN, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw["before"]["kl"].pop(), "do not fit the 4 held-out questions"),
        (lambda raw: raw["methods"]["dpo"]["final"]["f1"].append(0.5), "do not fit the 4 held-out questions"),
        (lambda raw: raw["titles"].pop(), "do not fit the 4 held-out questions"),
        (lambda raw: raw["methods"].pop("dpo"), "the methods are not those of the chain"),
        (lambda raw: raw["chain"]["methods"][0].update(name="grpo"), "two methods have one name"),
        (lambda raw: raw.update(more=1), "more: Extra inputs"),
    ],
)
def test_a_broken_record_gives_one_sentence(done, tmp_path, change, words):
    raw = json.loads(done[1].model_dump_json())
    change(raw)
    (tmp_path / "record.json").write_text(json.dumps(raw))
    with pytest.raises(RecordError, match=r"record\.json: ") as caught:
        read_as(LanguageChainRun, tmp_path / "record.json")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_line_runs_a_chain_from_a_file_and_writes_its_record(done, tmp_path, capsys):
    folder, run = done
    (tmp_path / "mine.json").write_text(CHAIN.model_dump_json())
    record = tmp_path / "record.json"
    assert main(["language-chain", str(tmp_path / "mine.json"), "--folder", str(folder), "--record", str(record)]) == 0
    assert "| grpo | " in capsys.readouterr().out
    assert read_as(LanguageChainRun, record).chain == run.chain
    assert main(["language-chain", "no-such-chain"]) == 2
    assert "there is no chain 'no-such-chain'; those that have names: quick-language-seed0" in capsys.readouterr().err


def test_the_named_chains_can_be_described_and_the_courses_are_read():
    for name, described in named_language_chains().items():
        assert described.name == name
        assert LanguageChain.model_validate(described.model_dump()) == described
    for name, run in load_language_chains().items():
        assert run.chain == named_language_chains()[name]
